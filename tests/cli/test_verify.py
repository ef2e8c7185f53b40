"""``loadmaster verify`` as a process: exit codes, one object, nothing else on standard output, and Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import Tiny
from tests.payload.inject import copy, poke, put, values_of

KEYS = [
    *("sound", "scope", "findings", "checkpoint", "plan", "files", "scales", "encoded", "copies", "sha256"),
    *("against", "manifest", "read_bytes", "seconds"),
]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadmaster", "verify", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_sound_payload_is_one_object_and_exit_0(tiny: Tiny) -> None:
    done = run(tiny("glm-5.1-fp8"), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(found) == [*KEYS, "bytes_per_s"]
    assert found["sound"] and found["scales"]["checked"] and found["scales"]["num_tensors"] > 0
    assert found["plan"] == {"proven": True, "num_errors": 0, "unplanned": None}
    assert found["scales"]["num_by_name"] == 0 and found["encoded"]["num_tensors"] > 0
    assert found["sha256"] == {"num_recorded": 0, "num_mismatched": 0, "num_unrecorded": 4}


def test_a_defect_is_exit_1_in_either_form(tiny_copy: Tiny) -> None:
    path = tiny_copy("smollm2")
    put(path, "model.norm.weight", (0,), float("nan"))
    done = run(path, "--json")
    assert (done.returncode, [f["tensor"] for f in json.loads(done.stdout)["findings"]]) == (1, ["model.norm.weight"])
    text = run(path, "--num-threads", 1, "--no-hash")
    assert text.returncode == 1
    assert "value-not-finite" in text.stdout and "not sound: 1 error(s)" in text.stdout
    assert "\x1b" not in text.stdout


def test_what_no_plan_tells_is_said_in_either_form_and_is_exit_1(tiny_copy: Tiny) -> None:
    path = tiny_copy("glm-5.1-fp8")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    done = run(path, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sound"], found["plan"]["proven"]) == (1, False, False)
    assert "NobodyForCausalLM" in found["plan"]["unplanned"]
    assert found["scales"]["num_by_name"] == found["scales"]["num_tensors"] > 0
    text = run(path)
    assert text.returncode == 1
    assert "plan: planning failed: " in text.stdout and "'NobodyForCausalLM' is not known" in text.stdout
    assert "recognised only by name" in text.stdout and "not sound: 1 error(s)" in text.stdout


def test_a_manifest_of_a_good_copy_shows_tensors_that_changed_places(tiny_copy: Tiny, tmp_path: Path) -> None:
    path, manifest = tiny_copy("smollm2"), tmp_path / "good.json"
    written = json.loads(run(path, "--write-manifest", manifest, "--json").stdout)
    assert written["manifest"] == str(manifest)
    assert run(path, "--against", manifest).returncode == 0
    k, v = (f"model.layers.1.self_attn.{p}_proj.weight" for p in "kv")
    values = values_of(path, k)
    copy(path, v, k)
    poke(path, v, lambda to: to.__setitem__(..., values))
    assert run(path).returncode == 0  # no look at the values can tell
    done = run(path, "--against", manifest, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, [(f["code"], f["tensor"]) for f in found["findings"]]) == (
        1,
        [("manifest-differs", k), ("manifest-differs", v)],
    )
    assert v in found["findings"][0]["message"]
    assert found["against"]["num_compared"] == found["against"]["num_tensors"] == written["checkpoint"]["num_tensors"]


def test_a_good_copy_may_be_a_folder_or_the_sha256_of_its_files(tiny: Tiny, tiny_copy: Tiny, tmp_path: Path) -> None:
    good, path, sums = tiny("smollm2"), tiny_copy("smollm2"), tmp_path / "sums"
    digest = hashlib.sha256((good / "model.safetensors").read_bytes()).hexdigest()
    sums.write_text(f"{digest}  model.safetensors\n")
    for against in (good, sums):
        assert run(path, "--against", against).returncode == 0
    put(path, "model.norm.weight", (0,), 1.5)
    for against, code in ((good, "manifest-differs"), (sums, "sha256-mismatch")):
        done = run(path, "--against", against, "--json", "--no-hash")
        assert (done.returncode, [f["code"] for f in json.loads(done.stdout)["findings"]]) == (1, [code])


@pytest.mark.parametrize("option", ["--against", "--write-manifest"])
def test_a_file_that_is_no_manifest_is_exit_2_and_left_alone(option: str, tiny: Tiny, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.json"
    for content in ("chapter one\n", '{"manifest_of": "something else"}\n'):
        precious.write_text(content)
        done = run(tiny("smollm2"), option, precious)
        assert (done.returncode, done.stdout) == (2, "")
        assert option in done.stderr and precious.read_text() == content
    missing = run(tiny("smollm2"), option, tmp_path / "nowhere" / "file")
    assert missing.returncode == 2 and "nowhere" in missing.stderr


@pytest.mark.parametrize("args", [["--num-threads", "0"], ["--nonsense"], ["--resume", "{state}"]])
def test_the_command_line_alone_is_exit_2(args: list[str], tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("something else\n")
    done = run(tiny("smollm2"), *(a.format(state=tmp_path / "state") for a in args))
    assert (done.returncode, done.stdout) == (2, "")
    assert "error" in done.stderr


def test_no_checkpoint_is_exit_1_and_a_finding(tmp_path: Path) -> None:
    done = run(tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"][0]["code"]) == (1, "checkpoint-missing")


def test_resumed_files_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    first, second = (run(tiny("glm-5.1-fp8"), "--resume", tmp_path / "state", "--json") for _ in range(2))
    assert json.loads(first.stdout)["files"] == {"num_read": 4, "num_resumed": 0}
    assert json.loads(second.stdout)["files"] == {"num_read": 0, "num_resumed": 4}
    assert json.loads(second.stdout)["read_bytes"] == 0


def test_ctrl_c_ends_it_soon_and_says_how_to_go_on(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    synth = [sys.executable, "-m", "loadmaster", "synth", "glm-5.1-fp8", str(sparse), "--full-size"]
    subprocess.run(synth, check=True, capture_output=True, timeout=300)  # 704 GiB in appearance
    state = tmp_path / "state"
    command = [sys.executable, "-m", "loadmaster", "verify", str(sparse), "--resume", str(state), "--num-threads", "2"]
    reset = signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored by who started the tests
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, reset)
    try:
        seen = psutil.Process(process.pid)
        while not (state.exists() and state.stat().st_size):
            assert process.poll() is None
            time.sleep(0.05)
        headers = seen.io_counters().read_chars
        while seen.io_counters().read_chars < headers + 2**28:  # far more than is read of headers and records
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert "to continue from" in err and "Traceback" not in err
