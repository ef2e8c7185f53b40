"""Composition: target ∘ schema ∘ spelling ∘ format, as one expression a parameter, for a class of layers.

What a fused parameter becomes follows from the forms of its parts:

    all quantised alike, form "stored"    the encoded components, each a parameter: values, scales …, with the grids; not for
                                          tensors that only `Format.everywhere` quantises, nor in a `Format.transient`, nor for
                                          what an engine lays out otherwise (`Param.laid`)
    none quantised, form not "decoded"    one parameter in the format stored (or in --dtype); mixed parts widen
    otherwise                             decoded, in the model's dtype
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from math import lcm
from typing import Literal

from loadmaster.architectures.algebra import (
    Cast,
    Coordinates,
    Each,
    Expression,
    Shard,
    axes,
    concat,
    localise,
    reorder,
    restrict,
    whole,
)
from loadmaster.architectures.components import encoded, format_of
from loadmaster.architectures.items import Item
from loadmaster.architectures.lower import Piece, pieces
from loadmaster.architectures.schema import Param, Tensor
from loadmaster.architectures.target import Held
from loadmaster.dtypes import join, widens
from loadmaster.parallel import ParallelLayout
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.division import divide, first_copies
from loadmaster.plan.filling import ExpertSizes, next_size, with_room, with_zeros
from loadmaster.plan.forms import StoredForm
from loadmaster.plan.grids import scale_grids
from loadmaster.plan.held import held_by, in_dims, laid
from loadmaster.plan.logical import pairs_of, view
from loadmaster.plan.moves import Move, move_of
from loadmaster.plan.specs import ParamSpec


@dataclass(frozen=True, slots=True)
class Numerics:
    """The model's dtype, why plain weights are cast to it (None: not cast), and how the engine holds formats (`Target`).

    ``expert_sizes`` are the sizes to which an engine's kernels want experts filled up; None: as they are.
    """

    model_dtype: str
    cast: str | None
    held: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)
    expert_sizes: ExpertSizes | None = None


@dataclass(frozen=True)
class PlannedParam:
    """A parameter of one class at one stage slot: its spec, and the pieces that make it up.

    The spec's name still holds ``{block}``. ``parts`` are the logical tensors it is made of.
    """

    spec: ParamSpec
    parts: tuple[str, ...]
    pieces: tuple[Piece, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the parameter."""
        return self.spec.num_bytes

    @property
    def device_bytes(self) -> int:
        """Bytes of the parameter on the rank's device."""
        return 0 if self.spec.host else self.num_bytes

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """What is read for each piece: shared by all ranks and layers that hold the parameter."""
        return tuple(move_of(piece) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Part:
    """One logical tensor of a parameter, and how it is stored: one form, or one an expert where they differ."""

    tensor: Tensor
    item: Item
    forms: tuple[StoredForm, ...]
    words: int = 1
    """Elements of the divided dim that one packed word of their consumer takes (`Placement.feeds`)."""
    rotary: Literal["pairs", "halves"] | None = None
    """The order of its heads' rows in the parameter (`Param.rotary`)."""

    @property
    def is_reordered(self) -> bool:
        """Whether the rows of its heads are stored in another order than the parameter has."""
        return self.tensor.head > 0 and self.item.pairs != (self.rotary is not None)


def parts_of(param: Param, bound: LayerClass) -> list[Part] | None:
    """Return what ``param`` is made of in a class; None where a part is defective or does not exist."""
    holders = bound.item_of
    if param.unless in holders or not all(p in holders and holders[p].key in bound.forms for p in param.parts):
        return None
    return [
        Part(t, holders[p], bound.forms[holders[p].key], words_fed(t, bound), param.rotary)
        for p in param.parts
        for t in holders[p].parts
        if t.name == p
    ]


def stays_encoded(part: Part) -> bool:
    """Return whether a quantised part can stay so in a parameter: its format can, and it is a weight that may be quantised."""
    formats = [f.format for f in part.forms if f.format]
    if part.is_reordered and not all(f.can_reorder(0, part.tensor.head) for f in formats):
        return False
    return part.tensor.quantised and not any(f.transient for f in formats)


def compose(param: Param, bound: LayerClass, numerics: Numerics, layout: ParallelLayout) -> UnplacedParam | None:
    """Return the parameter (not yet localised) that ``param`` becomes in a class.

    None where a part is defective (its finding is reported) or does not exist in this class.
    """
    parts = parts_of(param, bound)
    if parts is None:
        return None
    every = {f for part in parts for f in part.forms}
    quantised = {f.quantised for f in every}
    can_stay = param.form == "stored" and param.laid is None and all(map(stays_encoded, parts))
    if can_stay and quantised == {True} and len(every) == 1:
        dtype = None
    elif param.form != "decoded" and quantised == {False}:
        keep = param.keep or parts[0].tensor.keep
        dtype = keep or (numerics.model_dtype if numerics.cast else join(tuple(f.dtype for f in every)))
    else:
        dtype = numerics.model_dtype
    num_experts = parts[0].tensor.experts
    experts = first_copies(layout.expert_slots(num_experts)) if num_experts else ()
    table = parts[0].tensor.table
    host = table is not None and (layout.tables or table) == "host"
    return UnplacedParam(param, _fused(parts, numerics, dtype, layout), dtype is None, experts, host, numerics.held)


@dataclass(frozen=True)
class UnplacedParam:
    """A parameter before placement: its expression, and whether its values stay encoded (values and scales apart).

    ``experts``: where it is a stack, the expert of each slot, as `first_copies` gives them. ``host``: it is kept in the memory
    of the host. ``held``: how the engine holds formats (`Target.formats`).
    """

    param: Param
    expression: Expression
    is_encoded: bool
    experts: tuple[int, ...]
    host: bool = False
    held: Mapping[str, tuple[Held, ...]] = field(default_factory=dict)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes of the layout that it is divided over: stage slots that agree in these hold the same parameter."""
        return tuple(sorted(axes(self.expression)))

    def at(self, coordinates: Coordinates) -> Iterator[PlannedParam]:
        """Yield the parameters that one coordinate holds.

        Raises:
            LayoutError: a dim does not divide over the ranks.
        """
        e = localise(self.expression, coordinates)
        name, parts = self.param.name, self.param.parts
        division = divide(self.expression, len(parts), self.experts, coordinates)
        if not self.is_encoded:
            e = laid(e, self.param.laid)
            e = next_size(in_dims(e, self.expression.shape, self.param.ones), self.param)
            yield PlannedParam(ParamSpec(name, e.shape, e.dtype, division=division, host=self.host), parts, pieces(e))
            return
        format_ = format_of(e)
        components = [encoded(e, i) for i in range(len(format_.components))]
        held = held_by(self.held.get(format_.name, ()), format_, components)
        names = [component_name(name, h.suffix) for h in held]
        yield PlannedParam(
            ParamSpec(
                names[0],
                held[0].values.shape,
                held[0].dtype,
                scale=names[1],
                grids=scale_grids(e),
                format=format_.name,
                components=tuple(names[1:]),
                division=division,
                host=self.host,
            ),
            parts,
            pieces(held[0].values),
        )
        for component_of, h in zip(names[1:], held[1:], strict=True):
            spec = ParamSpec(component_of, h.values.shape, h.dtype, host=self.host)
            yield PlannedParam(spec, parts, pieces(h.values))


def component_name(name: str, suffix: str) -> str:
    """Return the name of the parameter that holds a component of the weight ``name``.

    >>> component_name("q.weight", "weight_scale_inv"), component_name("experts.w13_weight", "_blocks")
    ('q.weight_scale_inv', 'experts.w13_blocks')
    """
    stem = name.removesuffix("weight")
    return stem + (suffix if not stem.endswith("_") else suffix.removeprefix("_"))


def _fused(parts: Sequence[Part], numerics: Numerics, dtype: str | None, layout: ParallelLayout) -> Expression:
    """Return the parts one after another along their out dim; for experts, a stack of these by slot."""

    def fuse(forms: Sequence[StoredForm]) -> Expression:
        placed = [_placed(p, f, numerics, dtype, layout) for p, f in zip(parts, forms, strict=True)]
        return concat(1 if parts[0].item.stacked else 0, tuple(placed))

    num_experts = parts[0].tensor.experts
    if not num_experts:
        return fuse([p.forms[0] for p in parts])
    slots = layout.expert_slots(num_experts)
    if parts[0].item.stacked:
        stack = fuse([p.forms[0] for p in parts])
        runs = [_experts(stack, first, last + 1) for first, last in _runs(slots)]
    else:
        by_expert: Callable[[int], tuple[StoredForm, ...]] = lambda e: tuple(  # noqa: E731
            p.forms[e if len(p.forms) > 1 else 0] for p in parts
        )
        runs = [Each(fuse(forms), tuple(group)) for forms, group in groupby(slots, key=by_expert)]
    e = concat(0, tuple(runs))
    return Shard(e, 0, "ep", dealt=True) if layout.enable_expert_parallel else e


def _experts(stack: Expression, start: int, stop: int) -> Expression:
    """Return some experts of a stack that is not sliced, or all of one that may be."""
    if (start, stop) == (0, stack.shape[0]):
        return stack
    return restrict(stack, ((start, stop), *whole(stack.shape[1:])))


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of consecutive experts in a list of slots, first and last."""
    for _, group in groupby(enumerate(slots), key=lambda pair: pair[1] - pair[0]):
        run = [expert for _, expert in group]
        yield run[0], run[-1]


def _placed(part: Part, form: StoredForm, numerics: Numerics, dtype: str | None, layout: ParallelLayout) -> Expression:
    """Return one logical tensor with its placement; ``dtype`` None leaves it as it is stored."""
    tensor, placement = part.tensor, part.tensor.placement
    e = view(part.item, form, tensor)
    if part.rotary and tensor.head:
        assert not (part.item.pairs and part.rotary == "halves"), f"{tensor.name} has two orders in the model"
        pairs = pairs_of(tensor)
        e = reorder(e, 0, (pairs, 2) if part.rotary == "halves" else (2, pairs))
    if dtype is not None and e.dtype != dtype:
        e = Cast(e, dtype, None if widens(e.dtype, dtype) else _reason(form, numerics))
    lead, shares = (1 if part.item.stacked else 0), 1
    if placement is not None and not (tensor.experts and layout.enable_expert_parallel):
        dim = placement.dim + lead
        axis, unit = axis_of(tensor, layout), unit_of(tensor, form, part.words)
        shares = layout.axes(0)[axis][1]
        if can_pad(tensor, form) and (more := placement.padding(e.shape[dim], shares, unit)):
            e = with_zeros(e, tensor, dim, more)
        e = Shard(e, dim, axis, unit, placement.repeat, sections=placement.sections)
    return with_room(e, tensor, lead, shares, numerics.expert_sizes) if tensor.experts else e


def axis_of(tensor: Tensor, layout: ParallelLayout) -> str:
    """Return the axis that a placed tensor is divided over: all ranks of a stage, or those of a replica."""
    return "moe" if tensor.experts or (tensor.table and layout.tables_across_dp) else "tp"


def unit_of(tensor: Tensor, form: StoredForm, words: int = 1) -> int:
    """Return the unit in which a placed tensor is cut: its own unit, which splits no packed word of it or of its consumer."""
    assert tensor.placement is not None
    return lcm(tensor.placement.unit, form.format.exact_span(tensor.placement.dim) if form.format else 1, words)


def words_fed(tensor: Tensor, bound: LayerClass) -> int:
    """Return how many elements of a tensor's divided dim one packed word of the tensor that it feeds consumes."""
    fed = tensor.placement.feeds if tensor.placement else None
    item = bound.item_of.get(fed) if fed else None
    if tensor.placement is None or item is None:
        return 1
    consumer = next(t for t in item.parts if t.name == fed)
    each = tensor.shape[tensor.placement.dim] // consumer.shape[1]
    return lcm(*(each * f.format.exact_span(1) for f in bound.forms.get(item.key, ()) if f.format))


def can_pad(tensor: Tensor, form: StoredForm) -> bool:
    """Return whether a placed tensor can be padded with zeros as stored: padding is declared, and its format has zeros."""
    padded = tensor.placement is not None and tensor.placement.pad is not None
    return padded and (form.format is None or form.format.zero_filled)


def _reason(form: StoredForm, numerics: Numerics) -> str:
    if numerics.cast:
        return numerics.cast
    return "dequantised into the model's dtype" if form.quantised else "fused into one parameter of the model's dtype"
