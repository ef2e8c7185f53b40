"""Writes expressions as text, in the notation of the docs: ``Concat(q.weight, Shard(k.weight, dim=0, axis=tp))``.

For people and for JSON. Nothing reads the text back: plans and hashes are made from the expressions themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from loadmaster.architectures.algebra import Cast, Concat, Decode, Each, Expression, Fill, Leaf, Reorder, Shard, Stored
from loadmaster.architectures.components import reordered_dim

MOST_RUNS = 6
"""Up to this many runs of experts, or slices of rows, are written; of more, the first ones and the last."""


def _few(parts: Sequence[Expression]) -> Sequence[Expression]:
    """Return the parts of a `Concat` that are written: of many slices of one tensor, the first ones and the last."""
    slices = [part for part in parts if isinstance(part, Stored) and part.leaf.slice is not None]
    return (*parts[:3], parts[-1]) if len(slices) == len(parts) > MOST_RUNS else parts


def _name(leaf: Leaf) -> str:
    return leaf.name


@dataclass(frozen=True)
class Notation:
    """How an expression is written.

    ``named`` gives the name of a stored tensor. ``axes`` are the axes of the layout whose `Shard` nodes are written (None:
    all); an axis of one rank divides nothing, and is best left out.
    """

    named: Callable[[Leaf], str] = _name
    axes: Collection[str] | None = None

    def write(self, e: Expression, component: int | None = None) -> str:
        """Return ``e`` as text. With ``component``, write only that stored component of a weight whose values stay encoded.

        >>> from loadmaster.architectures.algebra import concat, stored
        >>> q, k = (stored(Leaf(name, "BF16", (4, 8))) for name in ("q.weight", "k.weight"))
        >>> Notation().write(Cast(Concat(0, (Shard(q, 0, "tp"), k)), "F32"))
        'Cast(Concat(Shard(q.weight, dim=0, axis=tp), k.weight), F32)'
        """
        match e:
            case Stored():
                return self.named(e.leaf) + view(e)
            case Each():
                return f"Each({self.write(e.member, component)}, experts {experts(e.ids)})"
            case Concat():
                dim = e.dim if component is None else _dim_of(e.parts[0], e.dim, component)
                parts = [self.write(part, component) for part in _few(e.parts)]
                if len(parts) < len(e.parts):
                    parts[-1:] = ["…", parts[-1], f"{len(e.parts)} in all"]
                return f"Concat({', '.join(parts)}{f', dim={dim}' if dim else ''})"
            case Decode():
                if component is not None:
                    return self.write(e.operands[component])
                return f"Decode({', '.join([e.format.name, *map(self.write, e.operands)])})"
            case Cast():
                return f"Cast({self.write(e.operand, component)}, {e.dtype})"
            case Reorder():
                operand = self.write(e.operand, component)
                dim = e.dim if component is None else reordered_dim(e, component)
                return operand if dim is None else f"Reorder({operand}, dim={dim}, {e.grid[0]}x{e.grid[1]})"
            case Fill():
                return f"Fill({e.value:g}, {list(e.shape)})"
            case Shard():
                operand = self.write(e.operand, component)
                dim = e.dim if component is None else _dim_of(e.operand, e.dim, component)
                is_written = dim is not None and (self.axes is None or e.axis in self.axes)
                return f"Shard({operand}, dim={dim}, axis={e.axis})" if is_written else operand


def view(e: Stored) -> str:
    """Return what a view takes of its tensor, as numpy and torch write it; nothing for the whole tensor as it is stored.

    >>> leaf = Leaf("w", "BF16", (8, 4))
    >>> view(Stored(leaf, (8, 4), ((0, 2), (0, 4)), (0, 1))), view(Stored(leaf, (8, 4), ((0, 8), (0, 4)), (1, 0)))
    ('[0:2, :]', '.T')
    """
    text = "" if e.factors == e.leaf.shape else f".view{e.factors}"
    if any((a, b) != (0, n) for (a, b), n in zip(e.box, e.factors, strict=True)):
        text += f"[{', '.join(_interval(e, dim) for dim in range(len(e.factors)))}]"
    order = sorted(e.order)
    if e.order == (1, 0):
        text += ".T"
    elif list(e.order) != order:
        text += f".permute{tuple(order.index(dim) for dim in e.order)}"
    return text


def box(region: Sequence[tuple[int, int]], shape: Sequence[int] | None = None) -> str:
    """Return a region as text; a dim that it covers whole is ``:``.

    >>> box(((0, 2), (0, 4)), (8, 4))
    '[0:2, :]'
    """
    whole = [None] * len(region) if shape is None else list(shape)
    return f"[{', '.join(':' if (a, b) == (0, n) else f'{a}:{b}' for (a, b), n in zip(region, whole, strict=True))}]"


def experts(ids: Sequence[int]) -> str:
    """Return the experts of a stack in order of their slots; of many runs, only the first and the last.

    >>> experts((0, 1, 2, 3)), experts((0, 2, 4)), experts(tuple(range(0, 64, 2)))
    ('0-3', '0, 2, 4', '0, 2, 4, …, 62 (32 in all)')
    """
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][-1] + 1:
            runs[-1][1:] = [i]
        else:
            runs.append([i])
    texts = ["-".join(map(str, run)) for run in runs]
    if len(texts) <= MOST_RUNS:
        return ", ".join(texts)
    return f"{', '.join(texts[:3])}, …, {texts[-1]} ({len(ids)} in all)"


def _interval(e: Stored, dim: int) -> str:
    a, b = e.box[dim]
    if dim not in e.order:
        return str(a)
    return ":" if (a, b) == (0, e.factors[dim]) else f"{a}:{b}"


def _dim_of(e: Expression, dim: int, component: int) -> int | None:
    """Return the dim of a component that corresponds to ``dim`` of an encoded weight; None where it is not divided along it."""
    match e:
        case Each():
            if dim == 0:
                return 0
            along = _dim_of(e.member, dim - 1, component)
            return None if along is None else along + 1
        case Concat():
            return _dim_of(e.parts[0], dim, component)
        case Shard() | Reorder():
            return _dim_of(e.operand, dim, component)
        case Decode():
            grains = enumerate(e.format.components[component].grains)
            return next((d for d, grain in grains if grain.dim == dim and grain.kind not in ("whole", "inner")), None)
        case _:
            raise AssertionError(f"{type(e).__name__} is not encoded")
