"""Which engine serves: the choice alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.integrations.engines import choose
from loadmaster.integrations.vllm.cpu import unsupported_on_cpu
from loadmaster.integrations.vllm.installed import Installed
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from tests.conftest import Tiny

GPUS = Installed("0.32.0", "cuda", 2)
CPU = Installed("0.32.0+cpu", "cpu", 1)
ROCM = Installed("0.32.0+rocm711", "rocm", None)
BARE = Installed("0.32.0", "cuda", 0)
LOST = Installed("0.32.0", "cuda", 8, is_registered=False)
NATIVE_ERROR = UnsupportedError("tensor parallelism does not run", hint="divide by stages")


@pytest.mark.parametrize(
    ("wanted", "installed", "more", "engine", "reason"),
    [
        ("native", GPUS, {}, "native", "--engine native"),
        ("auto", None, {}, "native", "vLLM is not installed in this environment"),
        ("auto", GPUS, {}, "vllm", "vLLM 0.32.0 runs here, on 2 of 2 GPUs"),
        ("auto", GPUS, {"native_error": NATIVE_ERROR}, "vllm", "runs here"),
        ("auto", GPUS, {"num_ranks": 4}, "native", "needs 4 GPUs, and this host has 2"),
        ("auto", GPUS, {"device": "cuda"}, "vllm", "runs here"),
        ("auto", GPUS, {"device": "cpu"}, "native", "--device cpu, but vLLM 0.32.0 is built for cuda"),
        ("auto", BARE, {}, "native", "built for CUDA GPUs, and this host has none"),
        ("auto", CPU, {}, "vllm", "runs here, on a CPU"),
        ("auto", CPU, {"num_ranks": 4}, "vllm", "runs here, on a CPU"),
        ("auto", CPU, {"device": "cuda"}, "native", "--device cuda, but vLLM 0.32.0+cpu is built for cpu"),
        ("auto", CPU, {"cpu_reason": "it has no FP8"}, "native", "built for CPUs, and it has no FP8"),
        ("auto", ROCM, {}, "native", "cannot detect a device for vLLM 0.32.0+rocm711; pass --engine vllm"),
        ("auto", LOST, {}, "native", "cannot find the load format"),
        ("vllm", GPUS, {"num_ranks": 4}, "vllm", "--engine vllm; vLLM 0.32.0"),
        ("vllm", ROCM, {}, "vllm", "--engine vllm"),
        ("vllm", CPU, {"cpu_reason": "it has no FP8"}, "vllm", "--engine vllm"),
    ],
)
def test_an_engine_is_chosen_and_the_its_reason_given(
    wanted: str, installed: Installed | None, more: dict[str, Any], engine: str, reason: str
) -> None:
    choice = choose(wanted, installed, **{"num_ranks": 2, **more})
    assert choice.engine == engine
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("wanted", "installed", "more", "said"),
    [
        ("vllm", None, {}, r"--engine vllm: vLLM is not installed(.|\n)*pip install 'loadmaster\[vllm\]'"),
        ("vllm", LOST, {}, r"cannot find the load format(.|\n)*VLLM_PLUGINS"),
        ("vllm", GPUS, {"device": "cpu"}, "--device cpu, but vLLM 0.32.0 is built for cuda"),
        ("native", GPUS, {"native_error": NATIVE_ERROR}, "tensor parallelism does not run"),
        (
            "auto",
            BARE,
            {"native_error": NATIVE_ERROR},
            "native: tensor parallelism does not run. vllm: .* this host has none",
        ),
        ("auto", None, {"native_error": NATIVE_ERROR}, r"not installed(.|\n)*divide by stages; or pip install"),
    ],
)
def test_where_no_engine_serves_each_reason_is_given(
    wanted: str, installed: Installed | None, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        choose(wanted, installed, num_ranks=2, **more)
    assert re.search(said, str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    ("preset", "flags", "lacks"),
    [
        ("qwen3", "avx2", None),
        ("deepseek-v3", "avx2", "needs AMX to compute in FP8"),
        ("deepseek-v3", "avx2 amx_tile", None),
        ("glm-5.1-fp8", "avx2 amx_tile", "no sparse attention"),
    ],
)
def test_what_vllm_lacks_on_a_cpu(preset: str, flags: str, lacks: str | None, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    reason = unsupported_on_cpu(build_plan(open_checkpoint(tiny(preset)), ParallelLayout()), tmp_path / "cpuinfo")
    assert (reason is None) == (lacks is None)
    assert lacks is None or lacks in str(reason)
