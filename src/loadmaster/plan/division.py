"""How a parameter is divided over the ranks of a stage, read off the expression that cuts it.

The layers need nothing else to compute in parallel: they count heads by rows, and add up what is partial.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadmaster.architectures.algebra import Concat, Coordinates, Decode, Each, Expression, Fill, Shard
from loadmaster.parallel import cut, deal
from loadmaster.plan.specs import Division, Rows


def divide(e: Expression, num_parts: int, experts: Sequence[int], coordinates: Coordinates) -> Division:
    """Return how ``e``, which is not localised, is divided at one coordinate.

    ``num_parts`` is how many logical tensors are fused in it, one after another along their out dim. ``experts`` are those
    of all slots of a stage where it is a stack, as `first_copies` gives them.
    """
    is_stack = bool(experts)
    is_dealt = False
    if isinstance(e, Shard) and e.dealt:
        index, count = coordinates[e.axis]
        start, stop = deal(e.shape[0], count, index)
        experts, is_dealt, e = experts[start:stop], count > 1, e.operand
    out_dim = 1 if is_stack else 0
    if is_stack and isinstance(e, Concat) and e.dim == 0:
        e = e.parts[0]  # runs of experts, which are all cut alike
    if isinstance(e, Each):
        e, out_dim = e.member, 0
    parts = tuple(map(_planned, e.parts if num_parts > 1 and isinstance(e, Concat) else (e,)))
    assert len(parts) == num_parts, (len(parts), num_parts)
    is_cut = any(isinstance(p, Shard) and p.dim == out_dim + 1 and coordinates[p.axis][1] > 1 for p in parts)
    return Division(tuple(_rows(p, out_dim, coordinates) for p in parts), is_dealt or is_cut, tuple(experts))


def first_copies(slots: Sequence[int]) -> tuple[int, ...]:
    """Return the expert of each slot, and -1 where an earlier slot has the same expert (redundant experts).

    >>> first_copies((0, 1, 2, 3, 0, 1))
    (0, 1, 2, 3, -1, -1)
    """
    return tuple(-1 if slot in slots[:i] else slot for i, slot in enumerate(slots))


def _rows(e: Expression, dim: int, coordinates: Coordinates) -> Rows:
    if not isinstance(e, Shard) or e.dim != dim:
        return Rows(0, e.shape[dim], _real(e, dim))
    index, count = coordinates[e.axis]
    held = cut(e.shape[dim], e.unit, count, index, repeat=e.repeat, sections=e.sections)
    return Rows(held.start, held.stop - held.start, _real(e.operand, dim), count // held.replicas)


def _planned(e: Expression) -> Expression:
    """Return a part without what it is filled up with on each rank (`with_room`). What divides it is under a `Shard`."""
    return _planned(e.parts[0]) if isinstance(e, Concat) and _is_fill(e.parts[-1]) else e


def _real(e: Expression, dim: int) -> int:
    """Return how many elements of a dim are not padding."""
    if isinstance(e, Shard):
        return _real(e.operand, dim)
    if isinstance(e, Concat) and e.dim == dim and _is_fill(e.parts[-1]):
        return sum(p.shape[dim] for p in e.parts[:-1])
    return e.shape[dim]


def _is_fill(e: Expression) -> bool:
    return isinstance(e, Fill) or (isinstance(e, Decode) and isinstance(e.operands[0], Fill))
