"""Expressions as text: what is read of a tensor, what divides it, and the components of an encoded weight."""

from __future__ import annotations

from loadmaster.architectures.algebra import Concat, Decode, Each, Fill, Leaf, Shard, decode, reorder, restrict, stored
from loadmaster.architectures.notation import Notation, box, view
from loadmaster.architectures.views import permute
from loadmaster.formats import FP8_TENSOR, fp8_block

W = stored(Leaf("w", "F8_E4M3", (256, 256)))
S = stored(Leaf("w_scale", "F32", (2, 2)))
WEIGHT = decode(fp8_block(), (W, S), (256, 256))


def test_a_part_of_a_transposed_tensor_is_cut_first_and_then_turned() -> None:
    turned = permute(stored(Leaf("w", "BF16", (4, 8))), (1, 0))
    assert view(turned) == ".T"
    assert view(restrict(turned, ((0, 2), (0, 4)))) == "[:, 0:2].T"  # type: ignore[arg-type]


def test_a_stack_turned_in_its_last_dims_is_a_permutation() -> None:
    assert view(permute(stored(Leaf("w", "BF16", (2, 4, 8))), (0, 2, 1))) == ".permute(0, 2, 1)"


def test_axes_of_one_rank_are_left_out() -> None:
    e = Shard(Shard(WEIGHT, 0, "tp"), 1, "moe")
    assert Notation().write(e) == "Shard(Shard(Decode(fp8_block, w, w_scale), dim=0, axis=tp), dim=1, axis=moe)"
    assert Notation(axes=("tp",)).write(e) == "Shard(Decode(fp8_block, w, w_scale), dim=0, axis=tp)"
    assert Notation(axes=()).write(e) == "Decode(fp8_block, w, w_scale)"


def test_a_component_of_a_stack_is_divided_as_its_values_are() -> None:
    stack = Shard(Each(Concat(0, (Shard(WEIGHT, 0, "moe"), WEIGHT)), (0, 1, 5)), 0, "ep", dealt=True)
    assert Notation().write(stack, 0) == (
        "Shard(Each(Concat(Shard(w, dim=0, axis=moe), w), experts 0-1, 5), dim=0, axis=ep)"
    )
    assert Notation().write(stack, 1) == (
        "Shard(Each(Concat(Shard(w_scale, dim=0, axis=moe), w_scale), experts 0-1, 5), dim=0, axis=ep)"
    )


def test_one_scale_for_a_whole_tensor_is_not_divided() -> None:
    scale = stored(Leaf("w_scale", "F32", (1,)))
    e = Shard(decode(FP8_TENSOR, (W, scale), (256, 256)), 0, "tp")
    assert [Notation().write(e, i) for i in (0, 1)] == ["Shard(w, dim=0, axis=tp)", "w_scale"]


def test_padding_is_a_constant() -> None:
    padded = Concat(1, (stored(Leaf("w", "BF16", (4, 6))), Fill((4, 2), "BF16", 0.0)))
    assert Notation().write(padded) == "Concat(w, Fill(0, [4, 2]), dim=1)"
    assert isinstance(WEIGHT, Decode)


def test_a_box_shows_what_is_whole() -> None:
    assert box(((0, 4), (2, 4)), (4, 8)) == "[:, 2:4]"
    assert box(((0, 4), (2, 4))) == "[0:4, 2:4]"


def test_rows_of_heads_in_another_order_are_written_with_the_grid_that_is_read_by_column() -> None:
    """256 rows in heads of 64: 32 pairs. A factor for blocks of 128 rows holds for two heads, and is not reordered."""
    e = Shard(reorder(WEIGHT, 0, (32, 2)), 0, "tp")
    assert Notation().write(e, 0) == "Shard(Reorder(w, dim=0, 32x2), dim=0, axis=tp)"
    assert Notation().write(e, 1) == "Shard(w_scale, dim=0, axis=tp)"
