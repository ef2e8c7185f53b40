"""Layouts that fit: against brute force with whole plans on tiny models, and what an expert would choose on published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import InputError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing import MemoryOptions, measure_proof
from loadmaster.sizing.devices import DEVICES, GIB
from loadmaster.sizing.fit import Fit, Fitter, Machine
from loadmaster.sizing.verdict import findings
from loadmaster.synth import PRESETS, write_full_size
from tests.conftest import Tiny


def fitted(path: Path, machine: Machine, engine: str = "native", drafts: int = 0, **options: int) -> Fit:
    target = "native" if engine == "native" else "vllm-0.32"
    plan = build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=drafts), target=target)
    return Fitter(plan, "vllm" if engine == "vllm" else "native", MemoryOptions(**options)).fit(machine)


@pytest.mark.parametrize("preset", ["llama", "qwen3-moe", "deepseek-v3"])
def test_every_layout_is_judged_as_a_whole_plan_of_it_is(preset: str, tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny(preset))
    fit = fitted(tiny(preset), Machine((2 * GIB,) * 4), max_num_batched_tokens=64)
    judged = {c.layout: c for c in (*fit.fitting, *fit.too_small)}
    assert len(judged) >= 3
    for layout, candidate in judged.items():
        proof = prove(build_plan(checkpoint, layout))
        assert proof.proven
        options = MemoryOptions((2 * GIB,), max_num_batched_tokens=64)
        memory = measure_proof(proof, "native", options)
        errors = [f for f in findings(memory) if f.severity == "error"]
        assert bool(errors) == (candidate.refused is not None)
        assert candidate.resident_bytes == tuple(
            proof.ranks[layout.stage_ranks(stage)[0]].resident_bytes for stage in range(layout.pipeline_parallel_size)
        )
        assert candidate.memory.num_blocks == memory.num_blocks
    for illegal in fit.illegal:
        if illegal.layout.data_parallel_size == 1:
            with pytest.raises(InputError):
                build_plan(checkpoint, illegal.layout)


def test_fitting_layouts_are_ordered_and_the_smallest_machine_fits(tiny: Tiny) -> None:
    fit = fitted(tiny("qwen3-moe"), Machine((2 * GIB,) * 4, per_host=2), max_num_batched_tokens=64)
    assert [c.spans_hosts for c in fit.fitting] == sorted(c.spans_hosts for c in fit.fitting)
    assert fit.smallest is not None and fit.smallest.layout.num_ranks == 1
    assert fit.smallest.refused is None


def test_a_machine_that_is_too_small_has_reasons_and_a_larger_one_is_named(tiny: Tiny) -> None:
    fit = fitted(tiny("llama"), Machine((GIB,)), max_num_batched_tokens=64)
    assert (len(fit.fitting), fit.smallest) == (0, None)  # CUDA alone takes more, on however many
    assert all(c.refused and "CUDA" in c.refused for c in fit.too_small)


def test_unequal_devices_are_those_of_the_ranks_in_order(tiny: Tiny) -> None:
    fit = fitted(tiny("llama"), Machine((8 * GIB, 8 * GIB, 2 * GIB)), max_num_batched_tokens=64)
    (three,) = [c for c in fit.fitting if c.layout.pipeline_parallel_size == 3]
    assert [r.device_bytes for r in three.memory.ranks] == [8 * GIB, 8 * GIB, 2 * GIB]


def test_the_native_engine_is_not_offered_data_parallelism(tiny: Tiny) -> None:
    native = fitted(tiny("qwen3-moe"), Machine((24 * GIB,) * 2), max_num_batched_tokens=64)
    of_vllm = fitted(tiny("qwen3-moe"), Machine((24 * GIB,) * 2), "vllm", max_num_batched_tokens=64)
    assert all(c.layout.data_parallel_size == 1 for c in native.fitting)
    assert any("data parallelism" in i.why for i in native.illegal)
    assert any(c.layout.data_parallel_size == 2 for c in of_vllm.fitting)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "machine", "drafts", "expected"),
    [
        ("glm-5.1-fp8", Machine((DEVICES["H200"].memory_bytes,) * 8), 1, (1, 8)),
        ("deepseek-v3", Machine((DEVICES["H100"].memory_bytes,) * 16), 1, (2, 8)),
        ("qwen3-moe", Machine((DEVICES["H100"].memory_bytes,) * 2), 0, (1, 2)),
    ],
)
def test_what_an_expert_would_choose_is_best(
    preset: str, machine: Machine, drafts: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    write_full_size(PRESETS[preset], tmp_path / "full")
    best = fitted(tmp_path / "full", machine, "vllm", drafts).fitting[0].layout
    assert (best.pipeline_parallel_size, best.tensor_parallel_size, best.data_parallel_size) == (*expected, 1)
    assert not best.enable_expert_parallel
