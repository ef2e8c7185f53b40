"""The laws of the weight algebra, on random expressions against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.architectures.algebra import (
    Cast,
    Concat,
    Each,
    Expression,
    Fill,
    Leaf,
    Region,
    Reorder,
    Shard,
    axes,
    compose,
    decode,
    leaves,
    localise,
    reorder,
    restrict,
    stored,
    whole,
)
from loadmaster.architectures.components import encoded
from loadmaster.architectures.lower import coverage, edges, multiplicity, num_elements, pieces, tiles
from loadmaster.architectures.views import permute, pick, split
from loadmaster.errors import LayoutError
from loadmaster.formats import FP8_CHANNEL, Component, Format, Grain, fp8_block, gptq
from tests.architectures.evaluate import evaluate

Made = tuple[Expression, dict[str, np.ndarray]]
BLOCK = fp8_block((3, 2))


@st.composite
def operands(draw: st.DrawFn, rows: int, columns: int, name: str, member: int = 0) -> Made:
    """A source of [rows, columns] values: a stored tensor in some storage order, a decoded one, or a constant."""
    lead = (member,) if member else ()
    kind = draw(st.sampled_from(["plain", "transposed", "interleaved", "decoded", "fill"]))
    random = np.random.default_rng(draw(st.integers(0, 99)))

    def array(*shape: int) -> np.ndarray:
        return random.integers(1, 1000, (*lead, *shape)).astype(np.float32)

    if kind == "plain":
        return stored(Leaf(name, "F32", (rows, columns), bool(member))), {name: array(rows, columns)}
    if kind == "transposed":
        return permute(stored(Leaf(name, "F32", (columns, rows), bool(member))), (1, 0)), {name: array(columns, rows)}
    if kind == "interleaved":  # every second row of a tensor of twice the rows
        e = pick(split(stored(Leaf(name, "F32", (2 * rows, columns), bool(member))), 0, (rows, 2)), 1, 1)
        return e, {name: array(2 * rows, columns)}
    if kind == "fill":
        return Fill((rows, columns), "F32", 7.0), {}
    grid = (-(-rows // 3), -(-columns // 2))
    e = decode(
        BLOCK,
        (stored(Leaf(name, "F32", (rows, columns), bool(member))), stored(Leaf(name + "s", "F32", grid, bool(member)))),
        (rows, columns),
    )
    return e, {name: array(rows, columns), name + "s": array(*grid)}


@st.composite
def expressions(draw: st.DrawFn) -> Made:
    """A fused parameter: parts one after another, perhaps cast, perhaps a stack over experts."""
    columns = draw(st.integers(1, 7))
    member = draw(st.sampled_from([0, 0, 3, 4]))
    parts, arrays = [], {}
    for i in range(draw(st.integers(1, 3))):
        part, more = draw(operands(draw(st.integers(1, 7)), columns, f"t{i}", member))
        parts.append(Cast(part, "F32") if draw(st.booleans()) else part)
        arrays.update(more)
    e: Expression = parts[0] if len(parts) == 1 else Concat(0, tuple(parts))
    if member:
        e = Each(e, tuple(draw(st.permutations(range(member)))))
    return e, arrays


def regions(shape: tuple[int, ...]) -> st.SearchStrategy[Region]:
    return st.tuples(
        *(
            st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(lambda p: (min(p), max(p[1], p[0] + 1)))
            for n in shape
        )
    )


@given(st.data())
def test_restricting_then_evaluating_is_evaluating_then_slicing(data: st.DataObject) -> None:
    e, arrays = data.draw(expressions())
    r = data.draw(regions(e.shape))
    assert np.array_equal(evaluate(restrict(e, r), arrays), evaluate(e, arrays)[tuple(slice(a, b) for a, b in r)])


@given(st.data())
def test_restricting_twice_is_restricting_once_by_the_composed_region(data: st.DataObject) -> None:
    e, _ = data.draw(expressions())
    r = data.draw(regions(e.shape))
    s = data.draw(regions(tuple(b - a for a, b in r)))
    assert restrict(restrict(e, r), s) == restrict(e, compose(r, s))


@given(st.data())
def test_an_expression_knows_its_shape(data: st.DataObject) -> None:
    e, arrays = data.draw(expressions())
    assert evaluate(e, arrays).shape == e.shape


@given(st.data())
def test_pieces_fill_the_parameter_exactly_once_with_the_right_values(data: st.DataObject) -> None:
    e, arrays = data.draw(expressions())
    r = data.draw(regions(e.shape))
    e = restrict(e, r)
    made = pieces(e)
    assert tiles([p.box for p in made], e.shape)
    out = np.full(e.shape, -1.0)
    for p in made:
        at = tuple(slice(a, b) for a, b in p.box)
        out[at] = evaluate(p.source if p.ids is None else Each(p.source, p.ids), arrays)
    assert np.array_equal(out, evaluate(e, arrays))


@given(
    units=st.integers(1, 6), unit=st.integers(1, 5), columns=st.integers(1, 5), count=st.integers(1, 6), data=st.data()
)
def test_localised_operands_tile_the_operand_with_the_declared_multiplicity(
    units: int, unit: int, columns: int, count: int, data: st.DataObject
) -> None:
    e, arrays = data.draw(operands(units * unit, columns, "t"))
    shard = Shard(e, 0, "tp", unit, repeat=True)
    if units % count and count % units:
        with pytest.raises(LayoutError, match="cannot be divided"):
            localise(shard, {"tp": (0, count)})
        return
    parts = [localise(shard, {"tp": (i, count)}) for i in range(count)]
    replicas = max(count // units, 1)
    joined = np.concatenate([evaluate(p, arrays) for p in parts[::replicas]])
    assert np.array_equal(joined, evaluate(e, arrays))
    views = [v for p in parts for v in leaves(p) if v.leaf.name == "t" and v.factors == v.leaf.shape]
    if views:
        boxes = [v.box for v in views]
        counts = multiplicity(edges(boxes, views[0].factors), boxes)
        assert (counts == replicas).all()


@given(heads=st.integers(1, 4), pairs=st.integers(1, 3), columns=st.integers(1, 4), data=st.data())
def test_rows_of_heads_that_are_reordered_are_cut_by_whole_heads_and_fill_their_rows(
    heads: int, pairs: int, columns: int, data: st.DataObject
) -> None:
    head = 2 * pairs
    operand, arrays = data.draw(operands(heads * head, columns, "t"))
    e = reorder(operand, 0, (pairs, 2))
    first, last = data.draw(regions((heads,)))[0]
    rows = ((first * head, last * head), (0, columns))
    order = [h * head + row for h in range(heads) for row in (*range(0, head, 2), *range(1, head, 2))]
    whole_values = evaluate(operand, arrays)[order]
    assert (e.shape, e.dtype) == (operand.shape, operand.dtype)
    assert np.array_equal(evaluate(e, arrays), whole_values)
    assert (e.shape, e.dtype) == (operand.shape, operand.dtype)
    assert np.array_equal(evaluate(restrict(e, rows), arrays), whole_values[rows[0][0] : rows[0][1]])
    assert restrict(restrict(e, rows), whole(restrict(e, rows).shape)) == restrict(e, rows)
    assert reorder(e, 0, (2, pairs)) == operand
    parts = [localise(Shard(e, 0, "tp", head), {"tp": (i, heads)}) for i in range(heads)]
    assert np.array_equal(np.concatenate([evaluate(p, arrays) for p in parts]), whole_values)
    (piece,) = pieces(restrict(e, rows))
    assert [v.leaf for v in leaves(piece.source)] == [v.leaf for v in leaves(operand)]


def test_a_factor_of_a_row_moves_with_it_and_one_of_whole_heads_stays() -> None:
    """Four heads of 6 rows: a factor for each row, or for two heads."""
    values, by_row, by_block = Leaf("w", "F8_E4M3", (24, 8)), Leaf("s", "F32", (24, 1)), Leaf("s", "F32", (2, 1))
    e = reorder(decode(FP8_CHANNEL, (stored(values), stored(by_row)), (24, 8)), 0, (3, 2))
    assert [encoded(e, i) for i in range(2)] == [Reorder(stored(leaf), 0, (3, 2)) for leaf in (values, by_row)]
    e = reorder(decode(fp8_block((12, 8)), (stored(values), stored(by_block)), (24, 8)), 0, (3, 2))
    assert encoded(restrict(e, ((12, 24), (0, 8))), 1) == restrict(stored(by_block), ((1, 2), (0, 1)))
    assert [f.can_reorder(0, 6) for f in (FP8_CHANNEL, fp8_block((12, 8)), fp8_block((4, 8)), gptq(8))] == [
        True,
        True,
        False,
        False,
    ]


def test_a_cut_inside_a_block_keeps_the_grid_of_the_whole_tensor() -> None:
    e = decode(fp8_block((4, 4)), (stored(Leaf("w", "F32", (10, 8))), stored(Leaf("s", "F32", (3, 2)))), (10, 8))
    part = restrict(e, ((5, 9), (0, 8)))
    assert part.origin == (5, 0)
    assert part.phase == (1, 0)
    assert part.operands[1].shape == (2, 2)  # rows 5 to 8 lie in blocks 1 and 2
    assert encoded(part, 1) == restrict(stored(Leaf("s", "F32", (3, 2))), ((1, 3), (0, 2)))


def test_a_cut_inside_a_packed_word_is_refused_with_the_legal_step() -> None:
    packed = Format(
        "packed",
        (
            Component("qweight", ("I32",), (Grain(0, 1), Grain(1, 8))),
            Component("scales", ("F16",), (Grain(0, 1, "cover"), Grain(1, 4, "cover"))),
        ),
    )
    e = decode(packed, (stored(Leaf("w", "I32", (4, 2))), stored(Leaf("s", "F16", (4, 4)))), (4, 16))
    assert restrict(e, ((0, 4), (8, 16))).operands[0].shape == (4, 1)
    with pytest.raises(LayoutError, match="splits a packed word of 8"):
        restrict(e, ((0, 4), (4, 16)))


def test_tiling_notices_gaps_overlaps_and_overhang() -> None:
    assert tiles([((0, 2), (0, 4)), ((2, 3), (0, 4))], (3, 4))
    assert tiles([((0, 2), (0, 4))], (3, 4)) is False
    assert not tiles([((0, 2), (0, 4)), ((1, 3), (0, 4))], (3, 4))
    assert tiles([((0, 4), (0, 4))], (3, 4)) is False
    assert tiles([((-1, 3), (0, 4))], (3, 4)) is False


def test_elements_are_counted_by_cell() -> None:
    boxes = [((0, 2), (0, 4)), ((1, 3), (0, 2))]
    cuts = edges(boxes, (3, 4))
    counts = multiplicity(cuts, boxes)
    assert num_elements(cuts, counts == 2) == 2
    assert num_elements(cuts, coverage(cuts, boxes)) == 10
    assert whole((3, 4)) == ((0, 3), (0, 4))


def test_edges_ascend_whatever_the_order_of_the_boxes() -> None:
    assert edges([((16, 40),), ((9, 16),)], (100,)) == ([0, 9, 16, 40, 100],)


def test_parts_along_another_dim_keep_their_place_in_the_outer_box() -> None:
    a, b, c = (stored(Leaf(name, "F32", shape)) for name, shape in (("a", (2, 6)), ("b", (3, 4)), ("c", (3, 2))))
    e = Concat(0, (a, Concat(1, (b, c))))
    assert [p.box for p in pieces(e)] == [((0, 2), (0, 6)), ((2, 5), (0, 4)), ((2, 5), (4, 6))]
    assert e.shape == (5, 6)
    assert Concat(1, (stored(Leaf("d", "F32", (2, 3, 4))), stored(Leaf("e", "F32", (2, 5, 4))))).shape == (2, 8, 4)


def test_only_a_localised_expression_is_restricted_or_lowered() -> None:
    shard = Shard(stored(Leaf("a", "F32", (4, 6))), 0, "tp")
    with pytest.raises(AssertionError, match="localised"):
        restrict(shard, ((0, 2), (0, 6)))
    with pytest.raises(AssertionError, match="localise first"):
        pieces(shard)
    with pytest.raises(AssertionError, match="is not encoded"):
        encoded(stored(Leaf("a", "F32", (4, 6))), 0)


def test_a_shard_has_the_shape_and_format_of_the_whole_and_is_cut_by_single_rows() -> None:
    shard = Shard(stored(Leaf("a", "F32", (3, 6))), 0, "tp")
    assert (shard.shape, shard.dtype) == ((3, 6), "F32")
    assert localise(shard, {"tp": (2, 3)}) == restrict(shard.operand, ((2, 3), (0, 6)))
    with pytest.raises(LayoutError):  # rows are not repeated unless that is declared
        localise(shard, {"tp": (0, 6)})
    assert localise(shard, {"tp": (0, 1)}) == shard.operand


def test_axes_are_those_of_all_operands() -> None:
    w, s = stored(Leaf("w", "F32", (6, 4))), stored(Leaf("s", "F32", (2, 2)))
    assert axes(Concat(0, (Shard(w, 0, "tp"), Cast(Shard(s, 0, "ep"), "F16")))) == {"tp", "ep"}
    assert axes(Each(Shard(decode(BLOCK, (w, s), (6, 4)), 0, "moe"), (0, 1))) == {"moe"}
    assert axes(decode(BLOCK, (w, Shard(s, 0, "tp")), (6, 4))) == {"tp"}
    assert axes(Fill((1,), "F32", 0.0)) == axes(w) == frozenset()


def test_leaves_are_one_tensor_each_unless_they_are_said_to_be_one_an_expert() -> None:
    assert not Leaf("a", "F32", (1,)).member
    parts = Concat(0, (stored(Leaf("a", "F32", (1, 2))), Fill((1, 2), "F32", 0.0), stored(Leaf("b", "F32", (1, 2)))))
    assert [v.leaf.name for v in leaves(Cast(Each(Shard(parts, 0, "tp"), (0,)), "F16"))] == ["a", "b"]


def test_localising_reaches_below_every_node() -> None:
    w, s = stored(Leaf("w", "F32", (6, 4), True)), stored(Leaf("s", "F32", (2, 2), True))
    e = Each(
        Cast(Concat(0, (Shard(decode(BLOCK, (w, s), (6, 4)), 0, "tp", 3), Fill((1, 4), "F32", 0.0))), "F16", "why"),
        (1, 0),
    )
    part = localise(e, {"tp": (1, 2)})
    assert part.shape == (2, 4, 4)
    assert isinstance(part, Each)
    assert (part.ids, part.dtype) == ((1, 0), "F16")
    assert isinstance(part.member, Cast)
    assert part.member.reason == "why"
    assert [v.box for v in leaves(part)] == [((3, 6), (0, 4)), ((1, 2), (0, 2))]


def test_components_of_concatenated_parts_follow_the_dim_that_runs_along() -> None:
    def part(name: str, rows: int, columns: int) -> Expression:
        grid = (-(-rows // 3), -(-columns // 2))
        leaves_ = stored(Leaf(name, "F8", (rows, columns))), stored(Leaf(name + "s", "F32", grid))
        return decode(BLOCK, leaves_, (rows, columns))

    below = Concat(0, (part("a", 3, 4), part("b", 4, 4)))
    assert (encoded(below, 0).shape, encoded(below, 1).shape) == ((7, 4), (3, 2))
    beside = Concat(1, (part("a", 3, 4), part("b", 3, 2)))
    assert (encoded(beside, 0).shape, encoded(beside, 1).shape) == ((3, 6), (1, 3))
    stack = Each(below, (0, 1))
    assert encoded(stack, 1).shape == (2, 3, 2)
    stacks = Concat(1, (Each(part("a", 3, 4), (0, 1)), Each(part("b", 6, 4), (0, 1))))
    assert (encoded(stacks, 0).shape, encoded(stacks, 1).shape) == ((2, 9, 4), (2, 3, 2))
    scalars = Format("one", (Component("weight", ("F8",), (Grain(0), Grain(1))), Component("weight_scale", ("F32",))))
    one = decode(scalars, (stored(Leaf("w", "F8", (3, 4))), stored(Leaf("s", "F32", (1,)))), (3, 4))
    assert encoded(Concat(0, (one, one)), 1).shape == (2,)
    assert encoded(Each(Concat(0, (one, one)), (0, 1, 4)), 1).shape == (3, 2)
    leaves_ = stored(Leaf("w", "F8", (3, 3, 4))), stored(Leaf("s", "F32", (3, 1)))
    stacked = decode(scalars.stacked(), leaves_, (3, 3, 4))
    assert encoded(Concat(1, (stacked, stacked)), 1).shape == (3, 2)
    assert encoded(restrict(stacked, ((1, 3), (0, 3), (0, 2))), 1).shape == (2, 1)
    assert restrict(one, ((1, 2), (0, 4))).operands[1] == one.operands[1]


def test_a_region_of_parts_along_an_inner_dim_keeps_the_dims_on_both_sides() -> None:
    a, b = stored(Leaf("a", "F32", (2, 3, 4))), stored(Leaf("b", "F32", (2, 5, 4)))
    part = restrict(Concat(1, (a, b)), ((0, 1), (2, 6), (1, 3)))
    assert part == Concat(1, (restrict(a, ((0, 1), (2, 3), (1, 3))), restrict(b, ((0, 1), (0, 3), (1, 3)))))


def test_the_last_packed_word_may_be_ragged_and_no_other() -> None:
    words = Component("w", ("I32",), (Grain(0), Grain(1, 8)))
    packed = Format("packed", (words, Component("s", ("F16",), (Grain(0, 1, "cover"), Grain(1, 4, "cover")))))
    e = decode(packed, (stored(Leaf("w", "I32", (4, 3))), stored(Leaf("s", "F16", (4, 5)))), (4, 20))
    last = restrict(e, ((0, 4), (8, 20)))
    assert [v.box[1] for v in leaves(last)] == [(1, 3), (2, 5)]
    assert [v.box[1] for v in leaves(restrict(last, ((0, 4), (8, 12))))] == [(2, 3), (4, 5)]
    for region in ((8, 18), (0, 20 - 1), (4, 16)):
        with pytest.raises(LayoutError, match="splits a packed word of 8") as refused:
            restrict(e, ((0, 4), region))
        assert refused.value.hint == "cuts of this dim must be multiples of 8"


def test_what_is_never_cut_stays_whole_beside_what_is() -> None:
    weight, scale = stored(Leaf("w", "F8_E4M3", (6, 4))), stored(Leaf("s", "F32", (6, 1)))
    channel = Format(FP8_CHANNEL.name, FP8_CHANNEL.components[:2])
    part = restrict(decode(channel, (weight, scale), (6, 4)), ((2, 5), (1, 3)))
    assert [v.box for v in leaves(part)] == [((2, 5), (1, 3)), ((2, 5), (0, 1))]

    shapes = {"qweight": (2, 8), "scales": (4, 8), "qzeros": (4, 1), "g_idx": (16,)}  # 8 out, 16 in, groups of 4
    packed = Format("gptq4", gptq(4, act_order=True).components[:4])  # without a bias
    e = decode(packed, tuple(stored(Leaf(n, "I32", shape)) for n, shape in shapes.items()), (8, 16))
    part = restrict(e, ((0, 8), (8, 16)))
    assert [v.box for v in leaves(part)] == [((1, 2), (0, 8)), ((0, 4), (0, 8)), ((0, 4), (0, 1)), ((8, 16),)]
