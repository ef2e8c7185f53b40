"""One parameter of a plan: its expression, and for each rank its shape and the bytes that fill it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loadmaster.architectures.algebra import Cast, Decode, Expression, Fill, Leaf, Region, Reorder
from loadmaster.architectures.items import Item
from loadmaster.architectures.notation import Notation
from loadmaster.plan.classes import TOP, LayerClass
from loadmaster.plan.composition import UnplacedParam, compose
from loadmaster.plan.explanation.names import param_names
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.plan import Plan
from loadmaster.plan.rank import Held, RankPlan
from loadmaster.plan.specs import Division
from loadmaster.plan.strided import StridedRun

Operation = Literal["copy", "permute", "decode", "cast", "fill"]


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Bytes of one stored tensor that are read: ``runs`` begin ``start`` bytes into ``file`` (its header included).

    ``runs.offset`` is from the first byte of the tensor, and already part of ``start``.
    """

    tensor: str
    file: str
    start: int
    runs: StridedRun

    @property
    def end(self) -> int:
        """The end of the last run, in bytes of the file."""
        return self.start + self.runs.span

    @property
    def num_bytes(self) -> int:
        """Bytes read, without the gaps between the runs."""
        return self.runs.num_bytes


@dataclass(frozen=True, slots=True)
class PieceReads:
    """One box of a parameter and what fills it.

    ``operation``: ``copy`` moves bytes unchanged, ``permute`` changes their order, ``decode`` dequantises, ``cast`` converts
    (``reason`` where precision is lost), ``fill`` writes a constant, and reads nothing. ``expression`` is the source, with
    ``{expert}`` in the names of a stack's tensors; ``experts`` are those of its slots, in order. ``reads`` are in the same
    order: for each expert, each operand.
    """

    box: Region
    operation: Operation
    expression: str
    reads: tuple[TensorRange, ...]
    experts: tuple[int, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ParamShare:
    """What some ranks hold of a parameter, all of them the same. ``alias`` names the parameter whose memory it shares."""

    ranks: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    alias: str | None
    division: Division
    pieces: tuple[PieceReads, ...]


@dataclass(frozen=True, slots=True)
class ExplainedParam:
    """One parameter of the running model.

    ``expression`` is what it is computed from, over whole stored tensors. Where values stay encoded, it is that of this
    component, ``format`` is the format's name and ``components`` are the names of all components. ``layer`` is the stored
    number of its layer, None for parameters of the model itself. ``shares`` are in order of their first ranks.
    """

    name: str
    target: str
    expression: str
    stages: tuple[int, ...]
    layer: int | None
    format: str | None
    components: tuple[str, ...]
    shares: tuple[ParamShare, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that hold it."""
        return tuple(sorted(rank for share in self.shares for rank in share.ranks))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter is among those of a rank: ``index`` in its specs, ``local`` in ``held``; in class ``bound``."""

    index: int
    local: int
    held: Held
    bound: LayerClass
    layer: int


def explain_param(plan: Plan, name: str) -> ExplainedParam | None:
    """Explain a parameter by its exact name; return None if no rank has it."""
    stages = tuple(dict.fromkeys(stage for stage, n in param_names(plan) if n == name))
    if not stages:
        return None
    ranks = sorted(r for stage in stages for r in plan.layout.stage_ranks(stage))
    return _explained(plan, name, stages, [plan.rank(rank) for rank in ranks])


def explain_on(plan: Plan, rank: RankPlan, names: Collection[str]) -> Iterator[ExplainedParam]:
    """Explain some parameters of a rank, in layer order, as this rank holds them: the shares of other ranks are left out."""
    for spec in rank.specs:
        if spec.name in names:
            yield _explained(plan, spec.name, (rank.pp_rank,), [rank])


def _explained(plan: Plan, name: str, stages: tuple[int, ...], ranks: Sequence[RankPlan]) -> ExplainedParam:
    shares: dict[ParamShare, list[int]] = defaultdict(list)
    place: _Place | None = None
    for rank in ranks:
        place = _find(plan, rank, name)
        shares[_share(plan, rank, place)].append(rank.rank)
    assert place is not None
    unplaced, component = _unplaced(plan, place)
    axes = {axis for axis, (_, size) in plan.layout.axes(0).items() if size > 1}
    notation = Notation(_namer(place.bound, place.layer), axes)
    encoded = [s for s in place.held.specs() if s.format and name in (s.name, *s.components)]
    return ExplainedParam(
        name=name,
        target=plan.target.name,
        expression=notation.write(unplaced.expression, component if unplaced.is_encoded else None),
        stages=stages,
        layer=None if place.layer == TOP else place.layer,
        format=encoded[0].format if encoded else None,
        components=(encoded[0].name, *encoded[0].components) if encoded else (),
        shares=tuple(replace(share, ranks=tuple(held_by)) for share, held_by in shares.items()),
    )


def _find(plan: Plan, rank: RankPlan, name: str) -> _Place:
    index = next(i for i, spec in enumerate(rank.specs) if spec.name == name)
    first = 0
    for held in rank.held:
        if index < first + len(held.composed):
            break
        first += len(held.composed)
    if held.old != "{block}":
        return _Place(index, index - first, held, plan.top_class, TOP)
    layer = next(layer for layer in plan.class_of if plan.block(layer) == held.new)
    return _Place(index, index - first, held, plan.classes[plan.class_of[layer][0]], layer)


def _unplaced(plan: Plan, place: _Place) -> tuple[UnplacedParam, int]:
    """Return the expression of a parameter before placement, and which component of it the parameter is."""
    composed = place.held.composed[place.local]
    for param in plan.target.params:
        if param.parts != composed.parts:
            continue
        unplaced = compose(param, place.bound, plan.numerics, plan.layout)
        names = [p.spec.name for p in unplaced.at(plan.layout.axes(0))] if unplaced is not None else []
        if unplaced is not None and composed.spec.name in names:
            return unplaced, names.index(composed.spec.name)
    raise AssertionError(f"{composed.spec.name} comes from no parameter of {plan.target.name}")


def _share(plan: Plan, rank: RankPlan, place: _Place) -> ParamShare:
    """Return what a rank holds of a parameter, without the rank's number."""
    spec = rank.specs[place.index]
    pieces = () if spec.alias else tuple(_pieces(plan, rank, place))
    return ParamShare((), spec.dtype, spec.shape, spec.num_bytes, spec.alias, spec.division, pieces)


def _pieces(plan: Plan, rank: RankPlan, place: _Place) -> Iterator[PieceReads]:
    notation = Notation(_namer(place.bound, place.layer))
    for group in rank.groups:
        if len(at := np.flatnonzero(group.params == place.index)):
            source = group.piece.source
            reason = source.reason if isinstance(source, Cast) else None
            ids = group.piece.ids or ()
            reads = tuple(tensor_ranges(plan, group, at.tolist()))
            yield PieceReads(group.piece.box, _operation(group), notation.write(source), reads, ids, reason)


def tensor_ranges(plan: Plan, group: MoveGroup, places: Sequence[int]) -> Iterator[TensorRange]:
    """Yield the bytes that some places of a group read: for each place, each view."""
    starts = [group.starts(plan.table, view) for view in range(len(group.runs))]
    for place in places:
        for view, run in enumerate(group.runs):
            tensor = int(group.tensors[place, view])
            file = plan.checkpoint.files[plan.table.file[tensor]].name
            yield TensorRange(plan.table.names[tensor], file, int(starts[view][place]), run)


def _operation(group: MoveGroup) -> Operation:
    if group.is_copy:
        return "copy"
    source: Expression = group.piece.source
    match source:
        case Fill():
            return "fill"
        case Decode():
            return "decode"
        case Cast():
            return "decode" if _decodes(source.operand) else "cast"
        case _:
            return "decode" if _decodes(source) else "permute"


def _decodes(e: Expression) -> bool:
    return isinstance(e, Decode) or (isinstance(e, Reorder) and isinstance(e.operand, Decode))


def _namer(bound: LayerClass, layer: int) -> Callable[[Leaf], str]:
    """Return what gives the stored name of a leaf of one layer; of an expert's tensors it has ``{expert}``."""
    items: Mapping[str, Item] = {item.key: item for item in bound.items}

    def named(leaf: Leaf) -> str:
        key, _, suffix = leaf.name.partition("/")
        if items[key].by_expert:
            return "{expert}".join(items[key].around_member(suffix, layer))
        return items[key].stored_name(suffix, layer, leaf.slice)

    return named
