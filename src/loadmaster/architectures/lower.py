"""From a localised expression to pieces: which boxes are written where.

A piece is one source (a view of a stored tensor, or an operation over views) and the box of the parameter that it fills.
`Concat` and `Each` disappear here: they only give positions. There is no object for each run or expert: a piece over
experts keeps the list of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadmaster.architectures.algebra import (
    Cast,
    Concat,
    Decode,
    Each,
    Expression,
    Fill,
    Region,
    Reorder,
    Stored,
    compose,
    concat,
    restrict,
    whole,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One source and its destination.

    ``source`` is a `Stored` view (a plain copy), or a `Cast`, `Decode`, `Reorder` or `Fill` to be computed. ``box`` is
    where it goes in the parameter. With ``ids``, ``box`` covers ``len(ids)`` slots of the first dim and ``source`` fills one
    slot.
    """

    source: Expression
    box: Region
    ids: tuple[int, ...] | None = None


def pieces(e: Expression) -> tuple[Piece, ...]:
    """Return the pieces that make up a localised expression, in order of position."""
    return tuple(_pieces(e, whole(e.shape), None))


def _pieces(e: Expression, box: Region, ids: tuple[int, ...] | None) -> Iterator[Piece]:
    match e:
        case Concat():
            lead = 0 if ids is None else 1  # inside an `Each` the box has the slots as first dim
            at = 0
            for part in e.parts:
                n = part.shape[e.dim]
                inner = list(whole(tuple(b - a for a, b in box)))
                inner[e.dim + lead] = (at, at + n)
                yield from _pieces(part, compose(box, tuple(inner)), ids)
                at += n
        case Each():
            assert ids is None, "Each does not nest"
            yield from _pieces(e.member, box, e.ids)
        case Decode(operands=(Concat() as values, *_)) | Cast(operand=Decode(operands=(Concat() as values, *_))):
            yield from _pieces(_by_slices(e, values), box, ids)
        case Cast() | Reorder() if isinstance(by_part := _by_parts(e), Concat):
            yield from _pieces(by_part, box, ids)
        case Stored() | Decode() | Cast() | Reorder() | Fill():
            yield Piece(e, box, ids)
        case _:
            raise AssertionError(f"{type(e).__name__} cannot be lowered: localise first")


def _by_parts(e: Expression) -> Expression:
    """Return what is cast or reordered so that each part of a concatenation is so alone (rows of groups that are packed)."""
    if not isinstance(e, Cast | Reorder):
        return e
    values = _by_parts(e.operand)
    if not isinstance(values, Concat):
        return e
    if isinstance(e, Reorder) and values.dim == e.dim:
        assert not any(p.shape[e.dim] % e.width for p in values.parts), "a part ends inside what is reordered together"
    return Concat(values.dim, tuple(replace(e, operand=part) for part in values.parts))


def _by_slices(e: Decode | Cast, values: Concat) -> Expression:
    """Return rows that are stored in several tensors so that each tensor is decoded alone.

    It may be the whole of a table, which is larger than any memory for staging.
    """
    assert values.dim == 0, "slices are rows"
    at, parts = 0, []
    for part in values.parts:
        rows = part.shape[0]
        parts.append(restrict(e, ((at, at + rows), *whole(e.shape[1:]))))
        at += rows
    return concat(0, tuple(parts))


Cuts = tuple[list[int], ...]
"""For each dim the edges between cells, ascending, both ends included."""


def edges(boxes: Sequence[Region], shape: tuple[int, ...]) -> Cuts:
    """Return the cuts of ``shape`` wherever a box begins or ends: all elements of a cell are in the same boxes.

    >>> edges([((0, 2), (0, 4)), ((1, 2), (0, 4))], (3, 4))
    ([0, 1, 2, 3], [0, 4])
    """
    return tuple(sorted({0, n, *(edge for box in boxes for edge in box[d])}) for d, n in enumerate(shape))


def multiplicity(cuts: Cuts, boxes: Sequence[Region]) -> np.ndarray:
    """Return how many of ``boxes``, whose edges are among the cuts, cover each cell.

    >>> boxes = [((0, 2), (0, 4)), ((1, 2), (0, 4))]
    >>> multiplicity(edges(boxes, (3, 4)), boxes).tolist()
    [[1], [2], [0]]
    """
    counts = np.zeros([len(c) - 1 for c in cuts], dtype=np.int64)
    for cells in _cells(cuts, boxes):
        counts[cells] += 1
    return counts


def coverage(cuts: Cuts, boxes: Sequence[Region]) -> np.ndarray:
    """Return which cells between ``cuts`` are in any of ``boxes``, whose edges are among the cuts."""
    covers = np.zeros([len(c) - 1 for c in cuts], dtype=np.bool_)
    for cells in _cells(cuts, boxes):
        covers[cells] = True
    return covers


def _cells(cuts: Cuts, boxes: Sequence[Region]) -> Iterator[tuple[slice, ...]]:
    indices = [{edge: i for i, edge in enumerate(c)} for c in cuts]
    for box in boxes:
        yield tuple(slice(p[a], p[b]) for p, (a, b) in zip(indices, box, strict=True))


def tiles(boxes: Sequence[Region], shape: tuple[int, ...]) -> bool:
    """Return whether ``boxes`` cover every element of ``shape`` exactly once."""
    if any(a < 0 or b > n for box in boxes for (a, b), n in zip(box, shape, strict=True)):
        return False
    return bool((multiplicity(edges(boxes, shape), boxes) == 1).all())


def num_elements(cuts: Cuts, mask: np.ndarray) -> int:
    """Return how many elements are in the cells that ``mask`` selects."""
    sizes: np.ndarray = np.ones((), dtype=np.int64)
    for edges in cuts:
        sizes = np.multiply.outer(sizes, np.diff(np.array(edges, dtype=np.int64)))
    return int((sizes * mask).sum())
