"""Every family in every format that it is published in, on the layouts that divide it: every byte is the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.loader.reference import Arrays, Reference, differences, divided_as, read_all

LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "pp 3": {"pipeline_parallel_size": 3},
    "pp 1+3": {"pipeline_parallel_size": 2, "layer_partition": "last"},
    "tp 2": {"tensor_parallel_size": 2},
    "tp 4": {"tensor_parallel_size": 4},
    "tp 8": {"tensor_parallel_size": 8},  # more ranks than key and value heads
    "pp 2 tp 2": {"pipeline_parallel_size": 2, "tensor_parallel_size": 2},
    "pp 2 tp 2 dp 2": {"pipeline_parallel_size": 2, "tensor_parallel_size": 2, "data_parallel_size": 2},
    "tp 4 ep": {"tensor_parallel_size": 4, "enable_expert_parallel": True},
    "pp 2 tp 2 dp 2 ep": {
        "pipeline_parallel_size": 2,
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
    },
    "tp 2 dp 2 ep, in turns": {
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "enable_expert_parallel": True,
        "expert_placement": "round_robin",
    },
    "pp 2 tp 4 ep, redundant": {
        "pipeline_parallel_size": 2,
        "tensor_parallel_size": 4,
        "enable_expert_parallel": True,
        "num_redundant_experts": 4,
    },
    "dp 3 ep, redundant, in turns": {
        "data_parallel_size": 3,
        "enable_expert_parallel": True,
        "expert_placement": "round_robin",
        "num_redundant_experts": 1,
    },
}

DENSE = ("pp 3", "tp 4", "tp 8", "pp 2 tp 2 dp 2")
SPARSE = ("tp 8", "pp 2 tp 2 dp 2", "tp 2 dp 2 ep, in turns", "pp 2 tp 4 ep, redundant")
"""What every change is tested on of each family; the rest is for the long run."""
OF_FORMATS = ("tp 8", "tp 2 dp 2 ep, in turns")
"""What it is tested on of a family's other presets, which differ in sizes or format: the finest cuts, and whole experts."""

TP = [name for name, layout in LAYOUTS.items() if "tensor_parallel_size" in layout]
DEEPSEEK_V4 = {"tp 8": "4 unit(s) of 16"}  # groups of the output
REFUSED: dict[str, dict[str, str]] = {
    "smollm2": dict.fromkeys(TP, "3 unit(s) of 16"),
    "qwen3-next": {"tp 8": "4 unit(s) of 96"},  # key heads of the linear attention
    "qwen3-next-fp8": {"tp 8": "4 unit(s) of 96"},
    "deepseek-v4-flash": DEEPSEEK_V4,
    "deepseek-v4-pro-0813": DEEPSEEK_V4,
    "deepseek-v4.1-flash": {
        **DEEPSEEK_V4,
        # the draft has four
        "dp 3 ep, redundant, in turns": "5 experts, redundant ones included, cannot be dealt out evenly to 3 ranks",
    },
    "minimax-m3-mxfp8": {
        "dp 3 ep, redundant, in turns": "5 experts, redundant ones included, cannot be dealt out evenly to 3 ranks"
    },
    "qwen3.8": {"tp 8": "4 unit(s) of 16"},
    "qwen3.5-moe": {"tp 8": "4 unit(s) of 16"},
    "deepseek-v3-awq": {"tp 8": "12 unit(s) of 8 (words of awq)"},  # 96 rows of an expert
    "kimi-k2-int4": {"tp 8": "12 unit(s) of 8 (words of int4_packed)"},
    "qwen2-moe-gptq": {"tp 8": "12 unit(s) of 8 (words of gptq4)"},
}
"""Layouts that do not divide a tiny model, by preset, and what the refusal says."""


def _cases() -> Iterator[Any]:
    seen: set[str] = set()
    for preset in PRESETS:
        config = PRESETS[preset].config_of(tiny=True)
        has_experts = "experts" in repr(config)
        family = PRESETS[preset].family_of(config).name
        fast = OF_FORMATS if family in seen else SPARSE if has_experts else DENSE
        seen.add(family)
        for name, layout in LAYOUTS.items():
            if has_experts or "enable_expert_parallel" not in layout:
                marks = () if name in fast else (pytest.mark.slow,)
                yield pytest.param(preset, name, marks=marks, id=f"{preset}: {name}")


@lru_cache(maxsize=1)
def _stored(path: Path) -> Arrays:
    return read_all(path)


def _layout(preset: str, name: str) -> ParallelLayout:
    config = PRESETS[preset].config_of(tiny=True)
    family = PRESETS[preset].family_of(config)
    schema = family.schema(family.describe(config))
    layout = {**LAYOUTS[name], "num_draft_layers": schema.num_drafts}
    if layout.get("layer_partition"):
        layout["layer_partition"] = (1, len(schema.layers) - 1)
    return ParallelLayout(**layout)


def assert_loads_as_the_reference(path: Path, layout: ParallelLayout) -> None:
    plan = build_plan(open_checkpoint(path), layout)
    proof = prove(plan)
    assert proof.proven, proof.findings
    layout = divided_as(layout, proof)
    for rank in range(plan.num_ranks):
        expected = Reference.at(path, layout, rank, _stored(path))
        assert differences(load_rank(proof.require_proven(), rank, num_readers=1).tensors, expected.params) == []


@pytest.mark.parametrize(("preset", "name"), list(_cases()))
def test_every_parameter_of_every_rank_is_the_reference(preset: str, name: str, tiny: Tiny) -> None:
    path, layout = tiny(preset), _layout(preset, name)
    if says := REFUSED.get(preset, {}).get(name):
        with pytest.raises(LayoutError) as error:
            build_plan(open_checkpoint(path), layout)
        assert says in str(error.value)
        return
    assert_loads_as_the_reference(path, layout)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        # three divide none of these vocabularies: 331 becomes 384, and the last rank holds zeros
        ("smollm2", {"intermediate_size": 192, "vocab_size": 331}),
        ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 192, "vocab_size": 385}),
        ("glm-4.5-air", {"num_attention_heads": 6, "num_key_value_heads": 1, "vocab_size": 259} | dict.fromkeys(
            ("intermediate_size", "moe_intermediate_size"), 192)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pp", [1, 2])
def test_a_vocabulary_that_does_not_divide_is_padded_with_zeros(
    preset: str, changes: dict[str, Any], pp: int, tmp_path: Path
) -> None:
    write_tiny(PRESETS[preset], tmp_path / preset, overrides=changes)
    drafts = PRESETS[preset].config.get("num_nextn_predict_layers", 0)
    assert_loads_as_the_reference(tmp_path / preset, ParallelLayout(pp, 3, num_draft_layers=drafts))


@pytest.mark.parametrize("placement", ["linear", "round_robin"])
@pytest.mark.parametrize("preset", ["qwen2-moe", "gpt-oss"])
def test_experts_that_do_not_divide_are_dealt_to_the_first_ranks(preset: str, placement: Any, tiny: Tiny) -> None:
    layout = ParallelLayout(1, 1, True, data_parallel_size=3, expert_placement=placement)
    path = tiny(preset)
    plan = build_plan(open_checkpoint(path), layout)
    shapes = [{s.name: s.shape for s in plan.rank(rank).specs} for rank in range(3)]
    stacks = [next(shape[0] for name, shape in held.items() if ".experts.w2_" in name) for held in shapes]
    assert stacks == [3, 3, 2]
    assert_loads_as_the_reference(path, layout)
