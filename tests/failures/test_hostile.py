"""Files made to hang or exhaust whoever reads them: each is a finding, soon and in little memory, for every command.

`tools/hostile.py` tries the same at an attacker's size, with every command a process of its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from loadmaster import limits
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import CheckpointError, ConfigError
from loadmaster.findings import errors
from loadmaster.payload import Journal
from loadmaster.plan import build_plan
from loadmaster.plan.diagnosis.strays import _groups
from loadmaster.synth import PRESETS, write_tiny
from tests.plan.test_patterns import computing
from tools.hostile import alone, device, directory, entries, fifo, loop, reconfigure, write_shard

CONFIG, INDEX = "config.json", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(PRESETS["llama"], tmp_path / "model")
    return tmp_path / "model"


def shards(folder: Path, header: bytes, count: int, data: int = 4) -> None:
    alone(folder)
    for i in range(count):
        write_shard(folder / f"model-{i}.safetensors", header.replace(b"NUMBER", str(i).encode()), data)


def header(text: bytes, data: int = 4) -> Callable[[Path], object]:
    return lambda folder: write_shard(alone(folder), text, data)


def text(file: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nested objects": (header(b'{"a":' * 200_000), "header-invalid"),
    "a million empty lists": (header(b'{"a":[' + b"[]," * 1_100_000 + b"[]]}"), "header-invalid"),
    "more values than entries can have": (header(b'{"a":[' + b"1," * 1_100_000 + b"1]}"), "header-invalid"),
    "over a million objects": (header(b'{"a":[' + b"{}," * 1_100_001 + b"{}]}"), "limit-exceeded"),
    "a header of 60 MB": (header(b"{" + b" " * 60_000_000 + b"}"), "limit-exceeded"),
    "20,000 duplicate keys": (header(entries(20_000, "same")), "header-duplicate-key"),
    "a name of a thousand characters": (header(entries(1, "a" * 1000)), "limit-exceeded"),
    "a name with an escape sequence": (header(entries(1, "a\\u001b[2J")), "header-invalid"),
    "a name with NUL": (header(entries(1, "a\\u0000")), "header-invalid"),
    "a name with half of a character": (header(entries(1, "a\\ud800")), "header-invalid"),
    "a name with half of a character, twice": (header(entries(2, "a\\ud800")), "header-duplicate-key"),
    "metadata with half of a character": (header(b'{"__metadata__":{"a":"\\ud800"}}', 0), "header-invalid"),
    "a name that is not UTF-8": (header(entries(1, "aX").replace(b"X", b"\xff")), "header-invalid"),
    "100,001 dims without spaces": (
        header(entries(1, shape="[" + "1," * 10**5 + "1]")),
        "limit-exceeded",
    ),
    "17 dims": (header(entries(1, shape=str([1] * 17))), "limit-exceeded"),
    "21,000 shapes": (header(entries(21_000, shape="[0,{}]", step=0), 0), "limit-exceeded"),
    "20,000 wrong extents": (header(entries(20_000, shape="[7]"), 80_000), "header-extent"),
    "NaN in a header": (header(b'{"a":NaN}'), "header-invalid"),
    "a product of dims with 300 digits": (header(entries(1, shape=str([2**62] * 16))), "header-extent"),
    "200 shards wrong alike": (lambda f: shards(f, entries(2, "NUMBER.{}", "[7]"), 200, 8), "header-extent"),
    "a shard that counts to 999,999": (
        lambda f: write_shard(alone(f).with_name("model-00001-of-999999.safetensors"), entries(1), 4),
        "limit-exceeded",
    ),
    "a shard that counts to more digits": (
        lambda f: write_shard(alone(f).with_name(f"model-1-of-{'9' * 18}.safetensors"), entries(1), 4),
        "limit-exceeded",
    ),
    "an index of 20,000 files": (
        text(INDEX, json.dumps({"weight_map": {f"t{i}": f"f{i}.safetensors" for i in range(20_000)}})),
        "limit-exceeded",
    ),
    "an index of 1,200,000 tensors": (
        text(INDEX, '{"weight_map":{' + '"a":"b",' * 1_200_000 + '"a":"b"}}'),
        "limit-exceeded",
    ),
    "an index of lists": (text(INDEX, "[" + "[]," * 20_000 + "[]]"), "index-invalid"),
    "an index that nests": (text(INDEX, "[" * 9_000), "index-invalid"),
    "an index that is a list": (text(INDEX, "[]"), "index-invalid"),
    "an index of a path": (text(INDEX, '{"weight_map":{"a":"../../etc/passwd"}}'), "index-invalid"),
    "an index of a device": (text(INDEX, '{"weight_map":{"a":"/dev/zero"}}'), "index-invalid"),
    "an index of a name with NUL": (text(INDEX, '{"weight_map":{"a":"a\\u0000.safetensors"}}'), "index-invalid"),
    "an index of a long name": (text(INDEX, '{"weight_map":{"a":"' + "a" * 300 + '"}}'), "index-invalid"),
    "an index of bytes": (text(INDEX, b'{"weight_map":{"a":"\xff"}}'), "index-invalid"),
    "an index whose total is no number of 64 bits": (
        text(INDEX, '{"metadata":{"total_size":1e300},"weight_map":{"a":"b.safetensors"}}'),
        "shard-missing",
    ),
    "a config of 10 MB": (text(CONFIG, " " * 10**7 + "{}"), "limit-exceeded"),
    "a config of nested lists": (text(CONFIG, "[" * 100_000), "config-invalid"),
    "a config of 40 nested lists": (text(CONFIG, '{"a":' + "[" * 40 + "]" * 40 + "}"), "limit-exceeded"),
    "a config of 300,000 lists": (text(CONFIG, '{"a":[' + "[]," * 300_000 + "[]]}"), "limit-exceeded"),
    "a config of 100,000 keys, one twice": (
        text(CONFIG, "{" + ",".join(f'"{i}":1' for i in range(100_000)) + ',"99999":1}'),
        "config-invalid",
    ),
    "a config with half of a character": (text(CONFIG, '{"a":"\\ud800"}'), "config-invalid"),
    "a config with 1e400": (text(CONFIG, '{"a":1e400}'), "config-invalid"),
    "a config with NaN": (text(CONFIG, '{"a":NaN}'), "config-invalid"),
    "a config with a number of 5,000 digits": (text(CONFIG, '{"a":' + "9" * 5000 + "}"), "config-invalid"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_a_finding_of_few_words(name: str, folder: Path) -> None:
    make, code = CASES[name]
    make(folder)
    with computing(20):
        try:
            found = errors(open_checkpoint(folder).findings)
        except CheckpointError as error:
            found = error.findings
    assert code in {f.code for f in found}
    for finding in found:
        assert len(f"{finding.summary}{finding.hint}".encode()) < 2000
        assert finding.summary.isprintable()
    assert len(found) < 40


KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim")
MOE_KEYS = ("num_nextn_predict_layers", "n_routed_experts", "n_shared_experts", "kv_lora_rank", "index_n_heads")


@pytest.mark.parametrize("key", [*KEYS, *MOE_KEYS])
@pytest.mark.parametrize("value", [10**9, 2**70, 10**4000])
def test_a_size_beyond_its_limit_is_refused_by_key_value_and_limit(key: str, value: int, tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8" if key in MOE_KEYS else "llama"], tmp_path)
    reconfigure(tmp_path, {key: value})
    limit = limits.OF_KEYS.get(key, limits.SIZE)
    with computing(20), pytest.raises(ConfigError, match=rf"{key} is .*, and the limit is {limit.value:,}") as raised:
        build_plan(open_checkpoint(tmp_path))
    assert limit.known in (raised.value.hint or "")


def test_sizes_within_their_limits_have_one_together(folder: Path, tmp_path: Path) -> None:
    reconfigure(folder, dict.fromkeys(KEYS[1:], 2**24))
    with pytest.raises(ConfigError, match="elements in all tensors, and the limit is"):
        build_plan(open_checkpoint(folder))
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path / "glm")
    reconfigure(tmp_path / "glm", {"num_hidden_layers": 1000, "n_routed_experts": 4000})
    with computing(20), pytest.raises(ConfigError, match="tensors in the checkpoint, and the limit is"):
        build_plan(open_checkpoint(tmp_path / "glm"))


def test_a_config_that_nothing_fits_is_another_models(tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path)
    reconfigure(tmp_path, {"num_hidden_layers": 400, "n_routed_experts": 300})
    with computing(40), pytest.raises(ConfigError, match="more than 100,000 tensors that"):
        build_plan(open_checkpoint(tmp_path))


def test_as_many_tensors_as_the_limit_allows_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(folder, entries(10, "NUMBER.{}"), 3, 40)
    monkeypatch.setattr("loadmaster.checkpoint.columns.TENSORS", limits.Limit(20, "tensors in the checkpoint", "", ""))
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.table) == 20
    [found] = [f for f in checkpoint.findings if f.code == "limit-exceeded"]
    assert found.file == "model-2.safetensors"
    assert "30 tensors in the checkpoint, and the limit is 20" in found.message


def test_the_modules_of_strays_are_found_without_a_list_of_all_prefixes() -> None:
    names = sorted(f"{i}." + "a." * 100 + "w" for i in range(3000))
    tracemalloc.start()
    groups = list(_groups(names, []))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert groups == [(None, [n]) for n in names]
    assert peak < 2**22  # a list of their prefixes takes 60 MiB


def test_a_module_is_stray_whole_if_all_that_the_checkpoint_has_of_it_is() -> None:
    strays = sorted(["a.b.x", "a.b.y", "a.c.x", "d.x", "d.y", "e", "a.c"])
    assert list(_groups(strays, ["a.c.y"])) == [
        ("a.b", ["a.b.x", "a.b.y"]),
        (None, ["a.c"]),
        (None, ["a.c.x"]),
        ("d", ["d.x", "d.y"]),
        (None, ["e"]),
    ]


# What is no regular file, and names that are not UTF-8 ------------------------------------------------------------------

TRY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
from loadmaster.cli.main import main
for path in sys.argv[1:]:
    for command in ("plan", "inspect", "verify", "load"):
        print("exit", command, main([command, path]), ascii(path))
"""


def run_all(paths: list[Path | bytes]) -> list[str]:
    """Run all commands on all paths in one process; return the lines that say how each ended."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))

    done = subprocess.run(
        [sys.executable, "-c", TRY, *paths],
        capture_output=True,
        timeout=900,
        preexec_fn=limit,
        errors="backslashreplace",
    )
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    assert done.returncode == 0, done.stderr[-4000:]
    return [line for line in done.stdout.splitlines() if line.startswith("exit ")]


def test_only_regular_files_are_read_whatever_stands_in_their_place(tmp_path: Path) -> None:
    paths: list[Path | bytes] = []
    for kind in (fifo, device, directory, loop):
        for target in ("model.safetensors", INDEX, CONFIG):
            folder = tmp_path / f"{kind.__name__}-{target}"
            write_tiny(PRESETS["llama"], folder)
            target = target if target != "model.safetensors" else min(p.name for p in folder.glob("*.safetensors"))
            (folder / target).unlink(missing_ok=True)
            kind(folder / target)
            paths.append(folder)
    for kind in (fifo, device):
        kind(tmp_path / f"{kind.__name__}.safetensors")
        paths.append(tmp_path / f"{kind.__name__}.safetensors")
    ends = run_all(paths)
    assert len(ends) == 4 * len(paths)
    assert [e for e in ends if e.split()[2] != "1"] == []


def test_links_to_regular_files_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert not open_checkpoint(tmp_path / "snapshot").findings


def test_names_that_are_not_utf_8_are_findings_and_never_a_traceback(tmp_path: Path) -> None:
    paths: list[Path | bytes] = []
    for number, name in enumerate((b"model-\xff.safetensors", b"esc\x1b[2J.safetensors")):
        write_tiny(PRESETS["llama"], tmp_path / str(number))
        Path(os.fsdecode(os.fsencode(tmp_path / str(number)) + b"/" + name)).write_bytes(b"")
        paths.append(tmp_path / str(number))
    (tmp_path / "none").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "none") + b"/\xff.bin")).write_bytes(b"")
    paths += [tmp_path / "none", os.fsencode(tmp_path) + b"/\xff"]
    write_tiny(PRESETS["llama"], Path(os.fsdecode(paths[-1])))
    ends = run_all(paths)
    assert [e.split()[2] for e in ends] == ["1"] * 16


def test_files_beside_the_shards_may_have_any_name(folder: Path) -> None:
    for name in (b"\xff", b"\xff.part", b"\xff.sha256", b"README\x1b.md"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    assert not errors(open_checkpoint(folder).findings)
    assert all(f.summary.isprintable() for f in open_checkpoint(folder).findings)


@pytest.mark.parametrize("line", [b"[]", b"{}", b"9" * 5000, b"[" * 5000, b"\xff", b"null"])
def test_a_state_file_of_anything_counts_for_nothing(line: bytes, tmp_path: Path) -> None:
    entry = {"key": [], "file": {}, "size": "", "mtime_ns": None, "sha256": 5, "findings": [], "blocks": 7}
    bogus = {"code": "x", "severity": "y", "message": 3, "ranks": [None]}
    forged = [entry, entry | {"key": "k", "findings": [bogus]}, entry | {"key": "k", "file": "f", "blocks": {"a": 1}}]
    path = tmp_path / "state"
    path.write_bytes(
        b'{"state of":"loadmaster verify"}\n' + b"\n".join([line, *(json.dumps(f).encode() for f in forged)])
    )
    with Journal(path) as journal:
        assert journal.find("k", hashed=False) is None
