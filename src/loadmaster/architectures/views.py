"""Views of stored tensors: their dims in another order, one of them split, picked from, or added. No bytes are touched."""

from __future__ import annotations

from math import prod

from loadmaster.architectures.algebra import Stored, whole


def permute(e: Stored, order: tuple[int, ...]) -> Stored:
    """Return the view with its dims in another order."""
    return Stored(e.leaf, e.factors, e.box, tuple(e.order[d] for d in order))


def pick(e: Stored, dim: int, index: int) -> Stored:
    """Return the view at ``index`` of ``dim``, which disappears."""
    d = e.order[dim]
    first = e.box[d][0]
    box = (*e.box[:d], (first + index, first + index + 1), *e.box[d + 1 :])
    return Stored(e.leaf, e.factors, box, (*e.order[:dim], *e.order[dim + 1 :]))


def split(e: Stored, dim: int, sizes: tuple[int, ...]) -> Stored:
    """Return the view with a whole, uncut dim seen as several (interleaved rows: ``[2I, H]`` as ``[I, 2, H]``)."""
    d = e.order[dim]
    assert e.box[d] == (0, e.factors[d]) and prod(sizes) == e.factors[d], "only a whole dim can be split"
    more = len(sizes) - 1
    moved = tuple(o + more if o > d else o for o in e.order)
    return Stored(
        e.leaf,
        (*e.factors[:d], *sizes, *e.factors[d + 1 :]),
        (*e.box[:d], *whole(sizes), *e.box[d + 1 :]),
        (*moved[:dim], *range(d, d + len(sizes)), *moved[dim + 1 :]),
    )


def with_ones(e: Stored, before: int, after: int) -> Stored:
    """Return the view with dims of one element added before and after its own.

    >>> from loadmaster.architectures.algebra import Leaf, stored
    >>> with_ones(stored(Leaf("a_log", "F32", (8,))), 2, 1).shape
    (1, 1, 8, 1)
    """
    count, one = len(e.factors), (0, 1)
    return Stored(
        e.leaf,
        (*(1,) * before, *e.factors, *(1,) * after),
        (*(one,) * before, *e.box, *(one,) * after),
        (*range(before), *(d + before for d in e.order), *range(before + count, before + count + after)),
    )
