"""The meaning of an expression, in numpy: the reference that the laws of the algebra are stated against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loadmaster.architectures.algebra import Cast, Concat, Decode, Each, Expression, Fill, Reorder, Shard, Stored

Leaves = Mapping[str, np.ndarray]
"""Leaf name → array; a leaf over experts has the expert as first dim."""


def evaluate(e: Expression, arrays: Leaves, expert: int | None = None) -> np.ndarray:
    match e:
        case Stored():
            array = arrays[e.leaf.name]
            array = array[expert] if e.leaf.member else array
            boxed = array.reshape(e.factors)[tuple(slice(a, b) for a, b in e.box)]
            picked = [d for d in range(len(e.factors)) if d not in e.order]
            return boxed.transpose([*e.order, *picked]).reshape(e.shape)
        case Each():
            return np.stack([evaluate(e.member, arrays, i) for i in e.ids])
        case Concat():
            return np.concatenate([evaluate(p, arrays, expert) for p in e.parts], axis=e.dim)
        case Decode():
            weight, scale = (evaluate(o, arrays, expert) for o in e.operands)
            (b0, b1), (p0, p1) = e.format.block, e.phase
            rows, columns = e.shape
            i, j = (np.arange(rows) + p0) // b0, (np.arange(columns) + p1) // b1
            return weight.astype(np.float32) * scale[np.ix_(i, j)]
        case Cast():
            return evaluate(e.operand, arrays, expert)
        case Reorder():
            values = evaluate(e.operand, arrays, expert)
            before, after = values.shape[: e.dim], values.shape[e.dim + 1 :]
            return values.reshape(*before, -1, *e.grid, *after).swapaxes(e.dim + 1, e.dim + 2).reshape(values.shape)
        case Fill():
            return np.full(e.shape, e.value)
        case Shard():
            return evaluate(e.operand, arrays, expert)
    raise AssertionError(e)
