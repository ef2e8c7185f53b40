"""Queries, keys and values packed by group: [q0 q1 k0 v0 q2 q3 k1 v1 …]."""

from __future__ import annotations

from pathlib import Path

import torch

from loadmaster.architectures.algebra import Cast, Concat, Leaf, Reorder, reorder, restrict, stored
from loadmaster.architectures.lower import pieces
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.test_text_models import MODELS

PACKED = stored(Leaf("qkv/weight", "BF16", (12, 8)))
"""Three runs of 4 rows; a tensor has the first and the last."""
GROUPS = Concat(0, tuple(restrict(PACKED, ((first, first + 4), (0, 8))) for first in (0, 8)))


def test_rows_of_groups_are_cast_group_by_group(tmp_path: Path) -> None:
    config = {"architectures": ["InternLM2ForCausalLM"], "dtype": "bfloat16", **MODELS["InternLM2ForCausalLM"]}
    write_checkpoint(find_family(config), config, tmp_path / "tiny")
    as_stored, cast = (
        load_rank(
            prove(build_plan(open_checkpoint(tmp_path / "tiny"), ParallelLayout(1, 2), dtype=dtype)).require_proven(), 1
        ).tensors
        for dtype in (None, "F32")
    )
    assert as_stored.keys() == cast.keys()
    assert all(torch.equal(cast[name], tensor.float()) for name, tensor in as_stored.items())


def test_rows_of_groups_are_reordered_and_cast_group_by_group() -> None:
    found = pieces(Cast(reorder(GROUPS, 0, (2, 2)), "F32"))
    assert [piece.box for piece in found] == [((0, 4), (0, 8)), ((4, 8), (0, 8))]
    assert [piece.source for piece in found] == [Cast(Reorder(part, 0, (2, 2)), "F32") for part in GROUPS.parts]
