"""How an engine holds what is stored: under which names, in which dtypes, with which dims of one element, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from loadmaster.architectures.algebra import Cast, Concat, Each, Expression, Stored, concat, reorder
from loadmaster.architectures.target import Held
from loadmaster.architectures.views import pick, with_ones
from loadmaster.formats import Format


@dataclass(frozen=True, slots=True)
class HeldComponent:
    """A component of a parameter's format: the ending of its name, its dtype, and what it is made of."""

    suffix: str
    dtype: str
    values: Expression


def held_by(engine: Sequence[Held], format_: Format, stored: Sequence[Expression]) -> list[HeldComponent]:
    """Return the components as the engine holds them; as they are stored, where these are not those that it expects."""
    as_stored = [HeldComponent(c.suffix, e.dtype, e) for c, e in zip(format_.components, stored, strict=True)]
    if [(h.suffix, h.dtype) for h in as_stored] != [(h.suffix, h.dtype) for h in engine]:
        return as_stored
    return [
        HeldComponent(*h.param, _bare(e) if h.bare and e.shape[-1:] == (1,) else e)
        for h, e in zip(engine, stored, strict=True)
    ]


def in_dims(e: Expression, shape: tuple[int, ...], ones: tuple[int, int] | None) -> Expression:
    """Return what a rank holds of a tensor of ``shape`` with other dims of one element: so many before and after the others."""
    if ones is None:
        return e
    if isinstance(e, Cast):
        return replace(e, operand=in_dims(e.operand, shape, ones))
    assert isinstance(e, Stored), "only plain tensors have other dims of one element"
    for dim in reversed(range(len(shape))):
        e = pick(e, dim, 0) if shape[dim] == 1 else e
    return with_ones(e, *ones)


def laid(e: Expression, how: Literal["apart", "beside"] | None) -> Expression:
    """Return what a rank holds of plain tensors as an engine lays it out (`Param.laid`).

    Rows that alternate are ``[…, 2 × rows, columns]``, of which a rank has whole pairs. A stack ``[n, rows, columns]`` becomes
    ``[rows, n × columns]``.
    """
    match how:
        case "apart":
            dim = len(e.shape) - 2
            return reorder(e, dim, (e.shape[dim] // 2, 2))
        case "beside" if isinstance(e, Cast):
            return replace(e, operand=laid(e.operand, how))
        case "beside":
            assert isinstance(e, Stored), "only a stack that is stored as one tensor is laid out"
            return concat(1, tuple(pick(e, 0, n) for n in range(e.shape[0])))
        case None:
            return e


def _bare(e: Expression) -> Expression:
    """Return one number for each expert without the dim that it has alone."""
    match e:
        case Stored():
            return pick(e, len(e.shape) - 1, 0)
        case Each():
            return Each(_bare(e.member), e.ids)
        case Concat() if e.dim < len(e.shape) - 1:
            return Concat(e.dim, tuple(map(_bare, e.parts)))
        case _:
            raise AssertionError(f"{type(e).__name__} is no column of numbers")
