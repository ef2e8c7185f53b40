"""Memory and reads: each rank's bytes are stated before launch, against a capacity if one is given; every byte is read once."""

from __future__ import annotations

import pytest

from tests.failures.conftest import Sound


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "llama"])
def test_ranks_over_the_capacity_are_one_finding_that_names_them_and_the_worst(preset: str, sound: Sound) -> None:
    checkpoint = sound(preset)
    figures = checkpoint.prove(4).ranks
    sizes = [r.resident_bytes for r in figures]
    capacity = sorted(sizes)[1]
    proof = checkpoint.prove(4, capacity=capacity)
    assert not proof.proven
    (found,) = proof.findings
    assert (found.code, found.severity) == ("memory-capacity", "error")
    assert found.ranks == tuple(r.rank for r in figures if r.resident_bytes > capacity)
    assert f"rank {sizes.index(max(sizes))} needs" in found.message
    assert checkpoint.prove(4, capacity=max(sizes)).proven


def test_sizes_are_told_in_a_unit_that_tells_them_apart(sound: Sound) -> None:
    checkpoint = sound("glm-5.1-fp8")
    (rank,) = checkpoint.prove(1).ranks
    (found,) = checkpoint.prove(1, capacity=2**18).findings
    needs = f"{rank.resident_bytes / 2**20:.1f} MiB"
    assert found.message == f"rank 0 needs {needs} for its parameters; the capacity is 256.0 KiB"
    (found,) = checkpoint.prove(1, capacity=rank.resident_bytes - 1).findings
    assert f"needs {rank.resident_bytes:,} bytes" in found.message
    assert f"the capacity is {rank.resident_bytes - 1:,}" in found.message


def test_the_last_stage_is_charged_for_head_and_draft(sound: Sound) -> None:
    without, with_draft = (sound("deepseek-v3").prove(2, drafts=n).ranks for n in (0, 1))
    assert with_draft[0].resident_bytes == without[0].resident_bytes
    assert with_draft[1].resident_bytes > without[1].resident_bytes


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "smollm2"])
def test_host_memory_is_a_fixed_budget_and_never_the_checkpoint(preset: str, sound: Sound) -> None:
    assert all(0 <= r.staging_bytes <= 256 * 2**20 for r in sound(preset).prove(2).ranks)


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "deepseek-v3", "qwen3", "llama"])
def test_each_rank_reads_its_own_bytes_once(preset: str, sound: Sound) -> None:
    proof = sound(preset).prove(4)
    payload = proof.plan.checkpoint.table.payload_bytes - sum(w.num_bytes for w in proof.waivers)
    assert sum(r.needed_bytes for r in proof.ranks) == payload
    assert all(r.fetched_bytes == r.needed_bytes for r in proof.ranks)
    assert all(r.needed_bytes < payload / 2 for r in proof.ranks)


def test_a_rank_s_reads_are_amplified_only_by_a_cut_within_rows(sound: Sound) -> None:
    whole, cut = (sound("llama").prove(*sizes).ranks for sizes in ((1, 1), (1, 4)))
    assert whole[0].fetched_bytes == whole[0].needed_bytes
    assert all(r.fetched_bytes >= r.needed_bytes for r in cut)
