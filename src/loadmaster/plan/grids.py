"""Scale grids: which scale each element of a quantised parameter has, from the parameter's expression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loadmaster.architectures.algebra import Concat, Decode, Each, Expression, Fill, Reorder
from loadmaster.architectures.components import encoded, format_of
from loadmaster.plan.specs import Grid


def scale_grids(e: Expression) -> tuple[Grid, ...]:
    """Return the scale grid of each fused part, in row order; experts share one."""
    return tuple(_grids(e))


def _grids(e: Expression) -> Iterator[Grid]:
    """Yield the scale grid of each fused part; experts share the member's."""
    match e:
        case Each():
            yield from _grids(e.member)
        case Decode():
            yield _grid(e)
        case Reorder():  # a factor holds for one row, or for all that are reordered together
            yield from _grids(e.operand)
        case Concat() if e.dim == len(e.shape) - 3:  # runs of experts
            yield from _grids(e.parts[0])
        case Concat(parts=(sound, Decode(operands=(Fill(), *_)))):  # padded: one grid covers the padding too
            (grid,), scale_shape = _grids(sound), encoded(e, 1).shape
            along = format_of(sound).scale_dim(len(e.shape) - 2)
            yield replace(grid, rows=(0, e.shape[-2]), scale_rows=(0, 1 if along is None else scale_shape[along]))
        case Concat():
            row = scale_row = 0
            for part in e.parts:
                for grid in _grids(part):
                    yield replace(
                        grid,
                        rows=(row + grid.rows[0], row + grid.rows[1]),
                        scale_rows=(scale_row + grid.scale_rows[0], scale_row + grid.scale_rows[1]),
                    )
                row, scale_row = row + grid.rows[1], scale_row + grid.scale_rows[1]
        case _:
            raise AssertionError(f"{type(e).__name__} has no grid")


def _grid(e: Decode) -> Grid:
    """Return the grid of one part. A dim without a scale dim is one block."""
    block, phase, first = [], [], []
    for dim in (len(e.shape) - 2, len(e.shape) - 1):
        along = e.format.scale_dim(dim)
        grain = None if along is None else e.format.components[1].grains[along]
        begin = 0 if grain is None or grain.kind == "whole" else e.origin[dim] // grain.span
        block.append(e.shape[dim] if grain is None else grain.span)
        phase.append(0 if grain is None else e.origin[dim] - begin * grain.span)
        first.append(begin)
    along = e.format.scale_dim(len(e.shape) - 2)
    scale_rows = 1 if along is None else e.operands[1].shape[along]
    return Grid((0, e.shape[-2]), (0, scale_rows), (block[0], block[1]), (phase[0], phase[1]), (first[0], first[1]))
