"""Composition: target ∘ schema ∘ spelling ∘ format, as one expression a parameter, for a class of layers.

What a fused parameter becomes follows from the forms of its parts:

    all quantised alike, form "stored"    the encoded components, each a parameter: weight and scale, with the grids
    none quantised, form "stored"         one parameter in the format stored (or in --dtype); mixed parts widen
    otherwise                             decoded, in the model's dtype
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import lcm

from loadmaster.architectures.algebra import (
    Cast,
    Concat,
    Coordinates,
    Decode,
    Each,
    Expression,
    Leaf,
    Shard,
    concat,
    decode,
    encoded,
    localise,
    stored,
)
from loadmaster.architectures.lower import Piece, pieces
from loadmaster.architectures.schema import Param, Tensor
from loadmaster.dtypes import join, widens
from loadmaster.formats import Format
from loadmaster.plan.bind import Form, LayerClass
from loadmaster.plan.specs import Grid, ParamSpec


@dataclass(frozen=True, slots=True)
class Numerics:
    """The model's dtype, whether the user asked for it (then plain weights are cast to it), and the quantised format."""

    model_dtype: str
    explicit: bool
    format: Format | None


@dataclass(frozen=True, slots=True)
class Composed:
    """A parameter of one class on one tensor-parallel rank: what it is, and the pieces that make it up.

    The spec's name still holds ``{block}``. ``parts`` are the logical tensors it is made of.
    """

    spec: ParamSpec
    parts: tuple[str, ...]
    pieces: tuple[Piece, ...]


def compose(param: Param, bound: LayerClass, numerics: Numerics, *, divide_experts: bool) -> Whole | None:
    """Return the parameter (not yet localised) that ``param`` becomes in a class.

    None where a part is defective (its finding is reported) or does not exist in this class.
    """
    tensors = {t.name: t for t in bound.tensors}
    if not all(p in tensors and p in bound.forms for p in param.parts):
        return None
    parts = [(tensors[p], bound.forms[p]) for p in param.parts]
    every = {f for _, forms in parts for f in forms}
    quantised = {f.quantised for f in every}
    if param.form == "stored" and quantised == {True} and len(every) == 1:
        target = None
    elif param.form == "stored" and quantised == {False}:
        keep = parts[0][0].keep
        target = keep or (numerics.model_dtype if numerics.explicit else join(tuple(f.dtype for f in every)))
    else:
        target = numerics.model_dtype
    e = _fused(parts, numerics, target, divide_experts=divide_experts)
    return Whole(param, e, target is None, numerics.format)


@dataclass(frozen=True, slots=True)
class Whole:
    """A parameter before placement: its expression, and whether its values stay encoded (weight and scale)."""

    param: Param
    expression: Expression
    is_encoded: bool
    format: Format | None

    def at(self, coordinates: Coordinates) -> Iterator[Composed]:
        """Yield the parameters that one coordinate holds.

        Raises:
            LayoutError: a dim does not divide over the ranks.
        """
        e = localise(self.expression, coordinates)
        name = self.param.name
        if not self.is_encoded:
            yield Composed(ParamSpec(name, e.shape, e.dtype), self.param.parts, pieces(e))
            return
        assert self.format is not None
        weight, scale = encoded(e, 0), encoded(e, 1)
        scale_name = name.removesuffix("weight") + self.format.components[1].suffix
        spec = ParamSpec(name, weight.shape, weight.dtype, scale_name, tuple(_grids(e)))
        yield Composed(spec, self.param.parts, pieces(weight))
        yield Composed(ParamSpec(scale_name, scale.shape, scale.dtype), self.param.parts, pieces(scale))


def _fused(
    parts: list[tuple[Tensor, tuple[Form, ...]]], numerics: Numerics, target: str | None, *, divide_experts: bool
) -> Expression:
    experts = parts[0][0].experts
    if not experts:
        return concat(0, tuple(_part(t, forms[0], numerics, target) for t, forms in parts))
    by_expert = [tuple(forms[e if len(forms) > 1 else 0] for _, forms in parts) for e in range(experts)]
    runs: list[Expression] = []
    for forms, group in groupby(range(experts), key=by_expert.__getitem__):
        member = concat(
            0,
            tuple(
                _part(t, f, numerics, target, divided=not divide_experts)
                for (t, _), f in zip(parts, forms, strict=True)
            ),
        )
        runs.append(Each(member, tuple(group)))
    e = concat(0, tuple(runs))
    return Shard(e, 0, "ep") if divide_experts else e


def _part(tensor: Tensor, form: Form, numerics: Numerics, target: str | None, *, divided: bool = True) -> Expression:
    """Return one logical tensor with its placement; ``target`` None leaves it as it is stored."""
    member = tensor.experts > 0
    e: Expression = stored(Leaf(f"{tensor.name}/weight", form.dtype, tensor.shape, member))
    unit = tensor.placement.unit if tensor.placement else 1
    if form.quantised:
        assert numerics.format is not None
        scale = numerics.format.components[1]
        operand = Leaf(f"{tensor.name}/{scale.suffix}", scale.dtypes[0], scale.shape(tensor.shape), member)
        e = decode(numerics.format, (e, stored(operand)), tensor.shape)
        if tensor.placement:
            spans = (
                g.span
                for c in numerics.format.components
                for g in c.grains
                if g.exact and g.dim == tensor.placement.dim
            )
            unit = lcm(unit, *spans)
    if target is not None and e.dtype != target:
        e = Cast(e, target, None if widens(e.dtype, target) else _reason(form, numerics))
    if tensor.placement and divided:
        return Shard(e, tensor.placement.dim, "tp", unit, tensor.placement.repeat)
    return e


def _reason(form: Form, numerics: Numerics) -> str:
    if numerics.explicit:
        return f"--dtype {numerics.model_dtype}"
    return "dequantised into the model's dtype" if form.quantised else "fused into one parameter of the model's dtype"


def _grids(e: Expression) -> Iterator[Grid]:
    """Yield the block grid of each fused part; experts share the member's."""
    match e:
        case Each():
            yield from _grids(e.member)
        case Decode():
            rows, scale_rows = e.shape[0], e.operands[1].shape[0]
            yield Grid((0, rows), (0, scale_rows), (e.format.block[0], e.format.block[1]), (e.phase[0], e.phase[1]))
        case Concat():
            row = scale_row = 0
            for part in e.parts:
                for grid in _grids(part):
                    yield replace(
                        grid,
                        rows=(row + grid.rows[0], row + grid.rows[1]),
                        scale_rows=(scale_row + grid.scale_rows[0], scale_row + grid.scale_rows[1]),
                    )
                rows, scales = part.shape[0], encoded(part, 1).shape[0]
                row, scale_row = row + rows, scale_row + scales
        case _:
            raise AssertionError(f"{type(e).__name__} has no grid")


def coordinates(tp_rank: int, tp_size: int) -> Mapping[str, tuple[int, int]]:
    """Return the coordinates of a tensor-parallel rank, for `localise`: experts are divided over the same ranks."""
    return {"tp": (tp_rank, tp_size), "ep": (tp_rank, tp_size)}
