"""An encoded expression by components: its format, and one stored component of it as an expression (values, scales, …)."""

from __future__ import annotations

from loadmaster.architectures.algebra import Concat, Decode, Each, Expression, Reorder
from loadmaster.formats import Format


def encoded(e: Expression, component: int) -> Expression:
    """Return one stored component of a localised expression whose values are all encoded alike.

    ``Concat(Decode(w, s), Decode(v, t))`` becomes ``Concat(w, v)`` for component 0 and ``Concat(s, t)`` for 1, along the
    component's dim that corresponds to the concatenated one. A component without such a dim (one number for each
    tensor, ``g_idx``) has one value, or run of values, for each part; in a stack, for each part of each expert. A `Reorder`
    applies to every component, except to factors that hold for everything that it reorders together.
    """
    match e:
        case Decode():
            return e.operands[component]
        case Concat():
            format_ = format_of(e)
            grains = format_.components[component].grains
            along = next((d for d, g in enumerate(grains) if g.dim == e.dim and g.kind != "inner"), format_.stack)
            return Concat(along, tuple(encoded(p, component) for p in e.parts))
        case Each():
            return Each(encoded(e.member, component), e.ids)
        case Reorder():
            dim, operand = reordered_dim(e, component), encoded(e.operand, component)
            return operand if dim is None else Reorder(operand, dim, e.grid)
        case _:
            raise AssertionError(f"{type(e).__name__} is not encoded")


def format_of(e: Expression) -> Format:
    """Return the format of an encoded expression; a stack of experts has one more leading dim than its member."""
    match e:
        case Decode():
            return e.format
        case Concat():
            return format_of(e.parts[0])
        case Each():
            return format_of(e.member).stacked()
        case Reorder():
            return format_of(e.operand)
        case _:
            raise AssertionError(f"{type(e).__name__} is not encoded")


def reordered_dim(e: Reorder, component: int) -> int | None:
    """Return the dim of a component that is reordered with the values; None where one factor holds for all of them."""
    grains = enumerate(format_of(e.operand).components[component].grains)
    return next((d for d, g in grains if g.dim == e.dim and g.span == 1 and g.kind != "inner"), None)
