"""DBRX: the published parameters, and experts whose rows follow one another in one matrix: divided, damaged, spelled wrongly."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.dbrx import FAMILY
from loadmaster.architectures.faults import table_faults
from loadmaster.architectures.spelling import packed
from loadmaster.checkpoint import open_checkpoint
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing import check_loading, stored_shapes
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.damage import Change, damaged_copy
from tests.architectures.test_text_models import MODELS

TINY: dict[str, Any] = {"architectures": ["DbrxForCausalLM"], "dtype": "bfloat16", **MODELS["DbrxForCausalLM"]}
RELEASED: dict[str, Any] = {
    **{"architectures": ["DbrxForCausalLM"], "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352},
    "attn_config": {"kv_n_heads": 8},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16},
}
EXPERTS = "transformer.blocks.2.ffn.experts.mlp."


def test_the_release_has_the_published_parameters() -> None:
    """132 billion: 16 experts of 3 x 10752 x 6144 in each of 40 layers, attention of 48 and 8 heads of 128."""
    shapes = stored_shapes(FAMILY, RELEASED)
    assert shapes[EXPERTS + "w1"] == shapes[EXPERTS + "v1"] == shapes[EXPERTS + "w2"] == (16 * 10752, 6144)
    assert sum(map(prod, shapes.values())) == 131_596_523_520


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("dbrx") / "tiny"
    write_checkpoint(FAMILY, TINY, path)
    return path


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    layouts = [ParallelLayout(2, 2), ParallelLayout(1, 2, enable_expert_parallel=True), ParallelLayout(1, 8)]
    assert check_loading(FAMILY, TINY, tmp_path, layouts=layouts) > 350


def test_a_rank_cuts_each_expert_of_the_matrix(sound: Path) -> None:
    """4 experts of 192 rows: rank 1 of 2 has the last 96 of each, and of ``w2``, which is stored (in, out), as columns."""
    stored = {name: DamagedCheckpoint(sound).tensor(EXPERTS + name).view(4, 192, 128) for name in ("w1", "v1", "w2")}
    plan = prove(build_plan(open_checkpoint(sound), ParallelLayout(1, 2))).require_proven()
    held = load_rank(plan, 1).tensors
    both = torch.cat([stored["w1"][:, 96:], stored["v1"][:, 96:]], dim=1)
    assert torch.equal(held["layers.2.mlp.experts.w13_weight"], both)
    assert torch.equal(held["layers.2.mlp.experts.w2_weight"], stored["w2"][:, 96:].transpose(1, 2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[:576], "expected [768, 128] from the config, found [576, 128]"),  # an expert less
        (lambda t: t.view(4, 192, 128), "expected [768, 128] from the config, found [4, 192, 128]"),
        (lambda t: t.view(4, 192, 128).transpose(1, 2).reshape(512, 192), "found [512, 192]"),
    ],
)
def test_a_matrix_of_experts_in_another_shape_is_one_finding(
    change: Change, says: str, sound: Path, tmp_path: Path
) -> None:
    path = damaged_copy(sound, tmp_path / "damaged", r"blocks\.2\.ffn\.experts\.mlp\.w2", change)
    (finding,) = prove(build_plan(open_checkpoint(path), ParallelLayout(1, 2))).findings
    assert (finding.code, finding.tensor) == ("shape-mismatch", EXPERTS + "w2")
    assert says in finding.message


def test_only_a_stack_of_one_tensors_experts_is_flat() -> None:
    both = packed("transformer.blocks.{layer}.w13", "moe.gate", "moe.up", stacked=True, flat=True)
    faults = table_faults(replace(FAMILY, spelling={**FAMILY.spelling, **both}), FAMILY.schema(FAMILY.describe(TINY)))
    says = "is flat in transformer.blocks.{layer}.w13; only one tensor's experts, stacked, can be flat"
    assert any(says in fault for fault in faults)
