"""The kit on checkpoints: a right family in plain and quantised forms, and what a wrong load looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import loadmaster.loader
from loadmaster.errors import LoadError
from loadmaster.loader import LoadedRank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth.quantised import QUANTISED
from loadmaster.testing import FamilyFaults, check_family, check_loading, check_plans, layouts_of, write_checkpoint
from loadmaster.testing.plans import name_of
from tests.testing.sample import CONFIG, FAMILY

EVERY_AXIS = [
    ParallelLayout(),
    ParallelLayout(2, 2),
    ParallelLayout(1, 4, enable_expert_parallel=True, expert_placement="round_robin"),
    ParallelLayout(2, 2, enable_expert_parallel=True, data_parallel_size=2),
    ParallelLayout(1, 2, enable_expert_parallel=True, num_redundant_experts=2),
]
"""Formats are checked on these: without one, on the dozen of `layouts_of`."""


@pytest.mark.parametrize(
    "format_",
    [
        None,
        "fp8",
        "nvfp4",
        "gptq-act-order",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("fp8-channel", "fp8-static", "w4a16")),
    ],
)
def test_a_right_family_passes_in_every_spelling_and_format(format_: str | None, tmp_path: Path) -> None:
    quantised: dict[str, Any] = {"quantization_config": QUANTISED[format_](16)} if format_ else {}
    done = check_family(FAMILY, CONFIG | quantised, tmp_path, layouts=EVERY_AXIS if format_ else None)
    assert done == ("check_tables", "check_plans", "check_loading")  # transformers has no such class


def test_the_layouts_are_a_dozen_and_use_every_axis() -> None:
    layouts = [name_of(layout) for layout in layouts_of(FAMILY, CONFIG)]
    assert 12 <= len(layouts) == len(set(layouts))
    for axis in ("pp 4", "tp 4", "dp 2", "ep in turns", "ep with 2 redundant", "layers 1+3"):
        assert any(axis in layout for layout in layouts), axis


def test_a_family_that_is_registered_nowhere_can_be_planned(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(FAMILY, CONFIG, tmp_path / "tiny", spelling=1)
    assert "model.layers.0.self_attn.qkv.weight" in checkpoint.table.ids
    plan = build_plan(checkpoint, ParallelLayout(2, 2))
    assert plan.family is FAMILY
    assert prove(plan).proven


def test_sizes_that_do_not_divide_are_said_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(FamilyFaults, match=r"spelling, tp 4: mlp.gate .*98 unit\(s\) of 1 do not divide over 4"):
        check_plans(FAMILY, CONFIG | {"intermediate_size": 98}, tmp_path)


def test_a_parameter_with_other_bytes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = loadmaster.loader.load_rank

    def damaged(plan: Plan, rank: int) -> LoadedRank:
        loaded = load(plan, rank)
        loaded.tensors["layers.0.gain"].view(torch.uint8)[3] ^= 1
        return loaded

    monkeypatch.setattr(loadmaster.loader, "load_rank", damaged)
    with pytest.raises(FamilyFaults, match=r"one rank: layers.0.gain on rank 0 differs .* byte 3 of 128"):
        check_loading(FAMILY, CONFIG, tmp_path, layouts=[ParallelLayout()])


def test_a_load_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plan: Plan, rank: int) -> LoadedRank:
        raise LoadError("model.safetensors ends at byte 12")

    monkeypatch.setattr(loadmaster.loader, "load_rank", fail)
    with pytest.raises(FamilyFaults, match=r"spelling, one rank: model\.safetensors ends at byte 12"):
        check_loading(FAMILY, CONFIG, tmp_path, layouts=[ParallelLayout()])
