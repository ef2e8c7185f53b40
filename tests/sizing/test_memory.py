"""Memory of ranks: sums that can be checked by hand, and parameters against the tensors of a real stage."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine.capacity import MAX_NUM_BATCHED_TOKENS, SHARE, Capacity
from loadmaster.errors import ArgumentError, ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.sizing import Memory, MemoryOptions, measure_proof, with_memory
from loadmaster.sizing.cache import PAGE_TOKENS
from loadmaster.sizing.devices import COMMUNICATION_BYTES, CONTEXT_BYTES, DRIVER_BYTES, GRAPH_BYTES, known_device
from loadmaster.sizing.memory import NATIVE_SHARE
from loadmaster.sizing.verdict import findings
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.torch_dtypes import TORCH
from tests.conftest import Tiny

GIB = 2**30


def proven(path: Path, layout: ParallelLayout | None = None, target: str = "native") -> Proof:
    return prove(build_plan(open_checkpoint(path), layout, target=target))


def native(proof: Proof, *device_bytes: int, length: int = 64, seqs: int | None = None, tokens: int = 32) -> Memory:
    return measure_proof(proof, "native", MemoryOptions(device_bytes, length, seqs, tokens))


@pytest.mark.parametrize("preset", ["deepseek-v3", "gemma-3", "gpt-oss-bf16"])
def test_parameters_are_the_bytes_of_the_tensors_that_a_rank_holds(preset: str, tiny: Tiny) -> None:
    layout = ParallelLayout(2, num_draft_layers=int(preset == "deepseek-v3"))
    proof = proven(tiny(preset), layout)
    memory = native(proof)
    for rank in memory.ranks:
        held = [s for s in proof.plan.rank(rank.rank).specs if s.alias is None]
        tensors = [torch.empty(s.shape, dtype=TORCH[s.dtype]) for s in held]
        assert rank.parameters_bytes == sum(t.nbytes for t in tensors)
    drafts = [s for s in proof.plan.rank(1).specs if s.name.startswith("mtp.") and s.alias is None]
    assert memory.ranks[1].draft_bytes == sum(s.num_bytes for s in drafts)
    assert memory.ranks[0].draft_bytes == 0


def test_without_a_device_the_cache_is_what_all_requests_can_use(tiny: Tiny) -> None:
    memory = native(proven(tiny("llama")), length=50, seqs=3)
    (rank,) = memory.ranks
    assert rank.block_bytes is not None
    assert (rank.cache_bytes, rank.request_bytes) == (
        3 * 4 * rank.block_bytes,
        4 * rank.block_bytes,
    )  # 50 tokens: 4 pages
    assert (memory.num_tokens, memory.longest, rank.left_bytes) == (None, None, None)


def test_the_native_engine_gives_its_cache_85_percent_of_what_is_free(tiny: Tiny) -> None:
    proof = proven(tiny("llama"))
    memory = native(proof, 2 * GIB, length=512, seqs=10**6)
    (rank,) = memory.ranks
    assert rank.block_bytes is not None and rank.cache_bytes is not None and memory.num_blocks is not None
    free = 2 * GIB - DRIVER_BYTES - CONTEXT_BYTES - proof.ranks[0].resident_bytes
    assert memory.num_blocks == int(free * 0.85) // rank.block_bytes
    assert rank.left_bytes == 2 * GIB - rank.fixed_bytes - rank.cache_bytes
    assert memory.num_tokens == memory.num_blocks // 32 * 32 * 16 or memory.num_tokens == memory.num_blocks * 512 // 32


def test_a_cache_is_no_larger_than_all_requests_can_use(tiny: Tiny) -> None:
    memory = native(proven(tiny("llama")), 80 * GIB, length=64, seqs=2)
    assert (memory.num_blocks, memory.num_tokens) == (8, 128)


def test_all_ranks_have_as_many_blocks_as_fit_on_the_smallest_device(tiny: Tiny) -> None:
    proof = proven(tiny("llama"), ParallelLayout(2, layer_partition=(1, 3)))
    seqs = 10**6
    small, large = native(proof, 2 * GIB, 2 * GIB, seqs=seqs), native(proof, 9 * GIB, 2 * GIB, seqs=seqs)
    assert small.num_blocks == large.num_blocks
    assert large.ranks[0].left_bytes == (small.ranks[0].left_bytes or 0) + 7 * GIB
    with pytest.raises(ConfigError, match="names 3 devices, and there are 2 ranks"):
        native(proof, GIB, GIB, GIB)


def test_vllm_uses_its_share_of_what_cuda_shows(tiny: Tiny) -> None:
    proof = proven(tiny("qwen3-moe"), ParallelLayout(1, 2), "vllm-0.32")
    memory = measure_proof(proof, "vllm", MemoryOptions((8 * GIB,), 64, 8, 32, gpu_memory_utilization=0.5))
    rank = memory.ranks[0]
    assert rank.runtime_bytes == DRIVER_BYTES + CONTEXT_BYTES + COMMUNICATION_BYTES
    used = rank.parameters_bytes + rank.activations_bytes + rank.logits_bytes + GRAPH_BYTES["vllm"]
    assert memory.num_blocks == (int((8 * GIB - DRIVER_BYTES) * 0.5) - used) // (rank.block_bytes or 1)


def test_vllms_defaults_follow_the_memory_of_the_device(tiny: Tiny) -> None:
    proof = proven(tiny("qwen3-moe"), None, "vllm-0.32")
    loads = [measure_proof(proof, "vllm", MemoryOptions((n * GIB,))).workload for n in (24, 80, 180)]
    assert [(load.max_num_seqs, load.max_num_batched_tokens) for load in loads] == [
        (256, 2048),
        (1024, 8192),
        (1024, 16384),
    ]


def test_lengths_beyond_the_models_and_other_impossible_values_are_refused(tiny: Tiny) -> None:
    proof = proven(tiny("llama"))
    with pytest.raises(ConfigError, match="expected at most 512"):
        native(proof, length=513)
    with pytest.raises(ArgumentError, match="gpu_memory_utilization is 1"):
        MemoryOptions(gpu_memory_utilization=1.5)
    with pytest.raises(UnsupportedError, match="in the model's dtype"):
        measure_proof(proof, "native", MemoryOptions(kv_cache_dtype="fp8"))


def test_a_cache_that_is_not_known_is_not_taken_for_none(tiny: Tiny) -> None:
    memory = native(proven(tiny("qwen3-next")), 80 * GIB)
    assert memory.unknown is not None and "linear attention" in memory.unknown
    assert (memory.num_tokens, memory.ranks[0].cache_bytes, memory.ranks[0].request_bytes) == (None, None, None)
    assert not list(findings(memory))
    (found,) = findings(native(proven(tiny("qwen3-next")), GIB))  # even so it is too small for CUDA
    assert found.code == "memory-capacity"


def test_logits_and_activations_grow_with_the_batch_and_are_divided_over_ranks(tiny: Tiny) -> None:
    one, two = native(proven(tiny("llama")), tokens=32), native(proven(tiny("llama")), tokens=64)
    assert two.ranks[0].activations_bytes > one.ranks[0].activations_bytes
    divided = native(proven(tiny("llama"), ParallelLayout(1, 2)), tokens=32)
    assert divided.ranks[0].activations_bytes < one.ranks[0].activations_bytes
    staged = native(proven(tiny("llama"), ParallelLayout(2)), tokens=32)
    assert staged.ranks[0].logits_bytes == 0 < staged.ranks[1].logits_bytes


def test_a_dense_layers_activations_are_its_widest_part_beside_the_residual(tiny: Tiny) -> None:
    config = proven(tiny("llama")).plan.config
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    (rank,) = native(proven(tiny("llama")), tokens=100).ranks
    decoded = inner * hidden
    assert rank.activations_bytes == (100 * (2 * hidden + 3 * inner + hidden) + decoded) * 2
    assert prod((hidden, inner)) == decoded


# Findings -------------------------------------------------------------------------------------------------------------


def test_one_request_that_does_not_fit_is_an_error_and_the_hint_fits(tiny: Tiny) -> None:
    proof = proven(tiny("llama"))
    need = native(proof, length=512, seqs=1)
    device = need.ranks[0].runtime_bytes + need.ranks[0].parameters_bytes + (need.ranks[0].request_bytes or 0)
    (found,) = findings(native(proof, device, length=512, seqs=1))
    assert (found.code, found.severity, found.ranks) == ("memory-capacity", "error", (0,))
    assert "one request of 512 tokens" in found.message
    hint = str(found.hint)
    assert "loadmaster fit" in hint


def test_requests_that_must_wait_are_a_warning_only_if_their_number_was_given(tiny: Tiny) -> None:
    proof = proven(tiny("llama"))
    assert not list(findings(native(proof, 8 * GIB, length=512)))
    at_once = (native(proof, 8 * GIB, length=512, seqs=10**6).num_tokens or 0) // 512
    (found,) = findings(native(proof, 8 * GIB, length=512, seqs=3 * at_once))
    assert (found.code, found.severity) == ("memory-requests", "warning")
    seqs, length = (int(word.rstrip(",")) for word in str(found.hint).split() if word.rstrip(",").isdigit())
    assert seqs == at_once
    assert not list(findings(native(proof, 8 * GIB, length=512, seqs=seqs)))
    assert not list(findings(native(proof, 8 * GIB, length=length, seqs=3 * at_once)))


def test_a_batch_that_the_cache_leaves_no_memory_for_is_a_warning(tiny: Tiny) -> None:
    memory = native(proven(tiny("llama")), 4 * GIB, length=512, seqs=10**6)
    (rank,) = memory.ranks
    greedy = replace(rank, activations_bytes=GIB, left_bytes=(rank.left_bytes or 0) - GIB)
    found = [f for f in findings(replace(memory, ranks=(greedy,))) if f.code == "memory-activations"]
    assert [f.severity for f in found] == ["warning"]
    assert "may take 1." in found[0].message


def test_vllm_that_asks_for_more_than_is_free_at_start_is_told_a_share_that_is(tiny: Tiny) -> None:
    proof = proven(tiny("qwen3-moe"), None, "vllm-0.32")
    options = MemoryOptions((8 * GIB,), 64, None, 32, gpu_memory_utilization=0.98)
    (found,) = findings(measure_proof(proof, "vllm", options))
    assert "--gpu-memory-utilization 0.98 asks for more" in found.message
    share = float(str(found.hint).split()[-1])
    assert not list(findings(measure_proof(proof, "vllm", replace(options, gpu_memory_utilization=share))))


def test_parameters_that_do_not_fit_by_themselves_are_one_finding(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("llama")))
    proof = prove(plan, capacity_bytes=2**20)
    assert with_memory(proof, native(proof, 2**20)) == proof
    proof = prove(plan, capacity_bytes=GIB)
    whole = with_memory(proof, native(proof, GIB))
    assert [f.code for f in whole.findings] == ["memory-capacity"]
    assert proof.proven and not whole.proven


def test_the_models_own_length_is_the_default(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path / "tiny", overrides={"max_position_embeddings": 96})
    assert measure_proof(proven(tmp_path / "tiny"), "native", MemoryOptions()).workload.max_model_len == 96


def test_devices_are_known_by_name_and_number() -> None:
    assert known_device("8xh200")[1].memory_bytes == known_device("H200")[1].memory_bytes == 143771 * 2**20
    assert known_device("A100-40GBx2")[0] == 2
    with pytest.raises(ConfigError, match="no such device") as caught:
        known_device("H900")
    assert "H100" in str(caught.value.hint)


def test_what_is_assumed_of_the_native_engine_is_what_it_does(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path / "tiny")
    workload = measure_proof(proven(tmp_path / "tiny"), "native", MemoryOptions()).workload
    assert workload.max_num_seqs == Capacity().max_num_seqs
    assert workload.max_num_batched_tokens == MAX_NUM_BATCHED_TOKENS["cuda"]
    assert SHARE["cuda"] == NATIVE_SHARE
    assert Capacity().block_size == PAGE_TOKENS
