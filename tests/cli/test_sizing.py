"""`plan` with options about memory, cuts and load time: what is printed, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadmaster.cli.main import main
from tests.conftest import Tiny

Said = pytest.CaptureFixture[str]


def plan(said: Said, path: Path, *given: str) -> tuple[int, dict[str, Any]]:
    code = main(["plan", str(path), *given, "--json"])
    return code, json.loads(said.readouterr().out)


def test_memory_is_only_counted_when_it_is_asked_for(tiny: Tiny, capsys: Said) -> None:
    assert "memory" not in plan(capsys, tiny("llama"))[1]
    code, found = plan(capsys, tiny("llama"), "--max-num-seqs", "4", "--max-model-len", "64")
    assert (code, found["memory"]["max_num_seqs"], found["memory"]["max_model_len"]) == (0, 4, 64)
    assert found["memory"]["estimated"] == ["activations_bytes", "logits_bytes", "runtime_bytes", "graphs_bytes"]
    assert found["memory"]["ranks"][0]["parameters_bytes"] == found["ranks"][0]["resident_bytes"]


def test_a_device_that_is_too_small_is_one_finding_and_exit_1(tiny: Tiny, capsys: Said) -> None:
    for device in ("1MiB", "1GiB"):  # too small for the parameters, and for the rest
        code, found = plan(capsys, tiny("llama"), "--device-memory", device)
        assert (code, [f["code"] for f in found["findings"]]) == (1, ["memory-capacity"])
    code, found = plan(capsys, tiny("llama"), "--device-memory", "8GiB")
    assert (code, found["findings"], found["memory"]["ranks"][0]["device_bytes"]) == (0, [], 8 * 2**30)
    assert found["memory"]["kv_cache"]["num_tokens"] >= 512


def test_the_table_marks_estimates_and_says_how_many_tokens_fit(tiny: Tiny, capsys: Said) -> None:
    assert (
        main(["plan", str(tiny("deepseek-v3")), "-pp", "2", "-sc", '{"method": "mtp"}', "--device-memory", "8GiB"]) == 0
    )
    said = capsys.readouterr().out
    assert "of them MTP" in said and "left ~" in said
    assert "tokens fit at a time" in said and "~ is an estimate, not measured" in said


def test_options_of_vllm_are_named_where_the_native_engine_ignores_them(tiny: Tiny, capsys: Said) -> None:
    options = ["--kv-cache-dtype", "fp8", "--gpu-memory-utilization", "0.8", "--max-num-seqs", "2"]
    path = str(tiny("qwen3-moe"))
    assert main(["plan", path, *options, "--json"]) == 0
    said = capsys.readouterr()
    assert "ignored: --gpu-memory-utilization, --kv-cache-dtype (of vLLM: --engine vllm)" in said.err
    native = json.loads(said.out)["memory"]
    assert main(["plan", path, *options, "--engine", "vllm", "--json"]) == 0
    of_vllm = json.loads(capsys.readouterr().out)["memory"]
    assert of_vllm["gpu_memory_utilization"] == 0.8
    assert of_vllm["ranks"][0]["request_bytes"] * 2 == native["ranks"][0]["request_bytes"]


def test_a_cache_that_is_not_covered_is_refused(tiny: Tiny, capsys: Said) -> None:
    assert main(["plan", str(tiny("qwen3-moe")), "--engine", "vllm", "--kv-cache-dtype", "nvfp4"]) == 1
    assert "nvfp4" in capsys.readouterr().err


def test_a_cache_that_is_not_known_is_said_to_be_unknown(tiny: Tiny, capsys: Said) -> None:
    assert main(["plan", str(tiny("qwen3-next")), "--max-num-seqs", "2"]) == 0
    said = capsys.readouterr().out
    assert "unknown" in said and "linear attention keeps a state for each request" in said
