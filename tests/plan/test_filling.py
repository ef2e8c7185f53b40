"""Experts that an engine's kernels want larger than they are: zeros follow what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loadmaster.architectures.algebra import Concat, Decode, Fill, Leaf, decode, stored
from loadmaster.architectures.schema import Param, by_rows, linear
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ArgumentError, UnsupportedError
from loadmaster.formats.table import MXFP4_PACKED
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.plan.filling import next_size, with_room
from tests.conftest import Tiny


def held(plan: Plan, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_rank(prove(plan).require_proven(), rank).tensors


def planned(path: Path, sizes: tuple[int, int] | None = None, **layout: int | bool) -> Plan:
    return build_plan(open_checkpoint(path), ParallelLayout(**layout), expert_sizes=sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_spread", [False, True])
def test_gate_and_up_are_filled_up_each_and_down_along_its_columns(is_spread: bool, tiny: Tiny) -> None:
    path, layout = tiny("qwen3-moe"), {"tensor_parallel_size": 2, "enable_expert_parallel": is_spread}
    inner = 64 if is_spread else 32  # of experts of 128 by 64
    as_is, filled = held(planned(path, **layout), 1), held(planned(path, (160, 96), **layout), 1)
    w13, w2 = "layers.0.mlp.experts.w13_weight", "layers.0.mlp.experts.w2_weight"
    assert as_is[w13].shape[1:] == (2 * inner, 128)
    assert filled[w13].shape == (*as_is[w13].shape[:1], 2 * 96, 160)
    assert filled[w2].shape == (*as_is[w2].shape[:1], 160, 96)
    for half in (0, 1):
        part = filled[w13][:, half * 96 : (half + 1) * 96]
        assert torch.equal(part[:, :inner, :128], as_is[w13][:, half * inner : (half + 1) * inner])
        assert not part[:, inner:].any() and not part[:, :, 128:].any()
    assert torch.equal(filled[w2][:, :128, :inner], as_is[w2])
    assert not filled[w2][:, 128:].any() and not filled[w2][:, :, inner:].any()
    others = as_is.keys() - {n for n in as_is if ".experts." in n}
    assert all(torch.equal(filled[name], as_is[name]) for name in others)


def test_pairs_of_rows_blocks_and_their_exponents_are_filled_up_alike(tiny: Tiny) -> None:
    path = tiny("gpt-oss")  # 160 of 128, in blocks of 32: three for each of two ranks
    filled = held(planned(path, (128, 128), tensor_parallel_size=2))
    as_is = held(planned(path, tensor_parallel_size=2))
    for name, rows in (("w13_blocks", 256), ("w13_scales", 256), ("w13_bias", 256)):
        name = f"layers.0.mlp.experts.{name}"
        assert (as_is[name].shape[1], filled[name].shape[1]) == (192, rows)
        assert torch.equal(filled[name][:, :192], as_is[name])
        assert not filled[name][:, 192:].any()
    for name in ("w2_blocks", "w2_scales"):
        name = f"layers.0.mlp.experts.{name}"
        assert (as_is[name].shape[2], filled[name].shape[2]) == (3, 4)
        assert torch.equal(filled[name][:, :, :3], as_is[name])
        assert not filled[name][:, :, 3:].any()
    assert torch.equal(filled["layers.0.mlp.experts.w2_bias"], as_is["layers.0.mlp.experts.w2_bias"])


@pytest.mark.parametrize("is_spread", [False, True])
@pytest.mark.parametrize("sizes", [(128, 96), (160, 96)])
def test_rows_that_are_filled_up_belong_to_no_rank_s_share(sizes: tuple[int, int], is_spread: bool, tiny: Tiny) -> None:
    layout = {"tensor_parallel_size": 2, "enable_expert_parallel": is_spread}
    plans = (planned(tiny("qwen3-moe"), given, **layout) for given in (None, sizes))
    as_is, filled = ({s.name: s.division for s in plan.rank(1).specs} for plan in plans)
    assert as_is == filled


@pytest.mark.parametrize(
    ("preset", "sizes", "words"),
    [
        ("qwen3-moe-fp8", (256, 192), "zeros cannot follow"),
        ("gpt-oss", (128, 176), "moe.down: 16 zeros cannot follow 160 elements in mxfp4"),
        ("qwen3-moe", (128, 48), "moe.gate has 64 elements of dim 0 on a rank, and room for 48"),
    ],
)
def test_what_cannot_be_filled_up_is_refused(preset: str, sizes: tuple[int, int], words: str, tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match=words):
        planned(tiny(preset), sizes)


def test_a_plan_s_json_keeps_the_sizes_and_its_hash_tells_them_apart(tiny: Tiny) -> None:
    plan = planned(tiny("qwen3-moe"), (128, 96))
    assert plan.hash != planned(tiny("qwen3-moe")).hash
    again = Plan.from_json(plan.to_json())
    assert (again.hash, again.expert_sizes) == (plan.hash, (128, 96))


@pytest.mark.parametrize(("rows", "filled"), [(5, 8), (8, 8), (9, 12), (12, 12), (13, 16), (17, 32), (33, 48)])
def test_rows_are_filled_up_to_the_next_size_or_a_multiple_of_the_last(rows: int, filled: int) -> None:
    e = stored(Leaf("sinks", "F32", (rows, 2)))
    param = Param("sinks", ("attn.sinks",), sizes=(8, 12, 16), filler=-1.0)
    more = Concat(0, (e, Fill((filled - rows, 2), "F32", -1.0)))
    assert next_size(e, param) == (more if filled > rows else e)
    assert next_size(e, replace(param, sizes=())) == e


def test_zeros_along_a_second_dim_are_beside_those_along_the_first() -> None:
    e = stored(Leaf("gate", "BF16", (4, 6)))
    gate = linear("moe.gate", 4, 6, by_rows(), experts=2)
    taller = Concat(0, (e, Fill((1, 6), "BF16", 0.0)))
    assert with_room(e, gate, 0, 1, (8, 5)) == Concat(1, (taller, Fill((5, 2), "BF16", 0.0)))
    assert with_room(e, gate, 0, 2, (6, 3)) == Concat(0, (e, Fill((1, 6), "BF16", 0.0)))  # each of two ranks has 2 rows
    assert with_room(e, gate, 0, 1, None) == e


def test_encoded_rows_are_followed_by_any_number_of_others_and_columns_by_whole_blocks() -> None:
    """Four rows of 64 in blocks of 32: two nibbles in a byte, an exponent for each block."""
    e = decode(MXFP4_PACKED, (stored(Leaf("w", "U8", (4, 32))), stored(Leaf("s", "U8", (4, 2)))), (4, 64))
    up = linear("moe.up", 4, 64, by_rows(), experts=2)
    zeros = Decode(MXFP4_PACKED, (Fill((1, 32), "U8", 0.0), Fill((1, 2), "U8", 0.0)), (1, 64), (4, 0))
    assert with_room(e, up, 0, 1, (64, 5)) == Concat(0, (e, zeros))
    beside = Decode(MXFP4_PACKED, (Fill((4, 16), "U8", 0.0), Fill((4, 1), "U8", 0.0)), (4, 32), (0, 64))
    assert with_room(e, up, 0, 1, (96, 4)) == Concat(1, (e, beside))
    below = Decode(MXFP4_PACKED, (Fill((5, 16), "U8", 0.0), Fill((5, 1), "U8", 0.0)), (5, 32), (0, 64))
    assert with_room(e, up, 0, 1, (96, 5)) == Concat(1, (Concat(0, (e, zeros)), below))
    with pytest.raises(UnsupportedError, match="16 zeros cannot follow 64 elements in mxfp4_packed"):
        with_room(e, up, 0, 1, (80, 4))


@pytest.mark.parametrize("sizes", [(128,), (128, 0), "128", (128, 9.5)])
def test_sizes_that_are_none_are_refused(sizes: object, tiny: Tiny) -> None:
    with pytest.raises(ArgumentError, match="expert_sizes"):
        planned(tiny("qwen3-moe"), sizes)  # type: ignore[arg-type]
