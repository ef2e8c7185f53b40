"""Predicted memory beside what was measured on an H200: the same models, options and layouts, planned anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing import MemoryOptions, measure_proof
from loadmaster.synth import PRESETS, write_full_size

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-28-h200-x1"
DEVICE = 143_771 * 2**20
"""The memory of an H200, as nvidia-smi shows it."""

GLM = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
NATIVE: dict[str, tuple[str, ParallelLayout, dict[str, Any]]] = {
    "llama": ("llama", ParallelLayout(), {}),
    "gemma-3, pp 2": ("gemma-3", ParallelLayout(2), {}),
    "qwen3-moe, 12 layers, tp 2": ("qwen3-moe", ParallelLayout(1, 2), {"num_hidden_layers": 12}),
    "glm-5.1, 3 layers": ("glm-5.1-fp8", ParallelLayout(), GLM),
    "glm-5.1, 3 layers, pp 2": ("glm-5.1-fp8", ParallelLayout(2), GLM),
}
VLLM: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-moe, 12 layers": ("qwen3-moe", {"num_hidden_layers": 12}),
}


@pytest.mark.parametrize("name", NATIVE)
def test_what_each_rank_allocates_is_within_a_twentieth(name: str, tmp_path: Path) -> None:
    preset, layout, config = NATIVE[name]
    write_full_size(PRESETS[preset], tmp_path, overrides=config)
    proof = prove(build_plan(open_checkpoint(tmp_path), layout, dtype="BF16"))
    memory = measure_proof(proof, "native", MemoryOptions((DEVICE // layout.num_ranks,), 16384, 64, 8192))
    measured = json.loads((RESULTS / "memory.json").read_text())["cases"][name]
    assert len(measured) == len(memory.ranks) == layout.num_ranks
    for rank, found in zip(memory.ranks, measured, strict=True):
        assert rank.cache_bytes is not None
        allocated = rank.parameters_bytes + rank.cache_bytes + rank.activations_bytes + rank.logits_bytes
        assert allocated == pytest.approx(found["max_memory_allocated"], rel=0.05)


@pytest.mark.parametrize("name", VLLM)
def test_the_kv_cache_of_vllm_is_within_a_hundredth(name: str, tmp_path: Path) -> None:
    preset, config = VLLM[name]
    write_full_size(PRESETS[preset], tmp_path, overrides=config)
    found = json.loads((RESULTS / "memory_vllm.json").read_text())[name]["vllm"]
    options = MemoryOptions(
        (DEVICE,), 8192, found["max_num_seqs"], found["max_num_batched_tokens"], gpu_memory_utilization=0.9
    )
    memory = measure_proof(prove(build_plan(open_checkpoint(tmp_path), dtype="BF16")), "vllm", options)
    (rank,) = memory.ranks
    assert rank.parameters_bytes == pytest.approx(found["model"], rel=0.01)
    assert rank.cache_bytes == pytest.approx(found["cache"], rel=0.01)
    assert memory.num_blocks == pytest.approx(found["blocks"], rel=0.01)
