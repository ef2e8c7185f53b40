"""One rank's share of a plan: its parameters, and what is moved into them. Derived on demand by `derive_rank`.

What stage slots, or layers of a class, have in common is built once and shared; a rank adds only names and columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from loadmaster.architectures.cuts import crossing
from loadmaster.architectures.schema import Param
from loadmaster.arguments import expect, shown
from loadmaster.checkpoint import TensorTable
from loadmaster.checkpoint.table import FILE_BITS, OFFSET
from loadmaster.errors import ArgumentError
from loadmaster.plan.classes import LayerClass
from loadmaster.plan.composition import PlannedParam
from loadmaster.plan.model import PlannedModel
from loadmaster.plan.moves import I32, I64, Move, MoveGroup
from loadmaster.plan.specs import ParamSpec, itemsize
from loadmaster.plan.strided import StridedRun, strided_run


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters that a rank holds under its own names: in the names of ``composed``, ``old`` becomes ``new``, and
    ``{draft}`` becomes ``draft``.

    With ``alias`` they share the memory of parameters of the same rank: those whose ``old`` became ``alias``.
    """

    composed: tuple[PlannedParam, ...]
    old: str
    new: str
    alias: str | None = None
    draft: str = ""

    def specs(self) -> Iterator[ParamSpec]:
        """Yield the parameters under the rank's names."""
        old, new = self.old, self.new

        def named(name: str) -> str:
            return name.replace(old, new).replace("{draft}", self.draft)

        for c in self.composed:
            s = c.spec
            yield ParamSpec(
                named(s.name),
                s.shape,
                s.dtype,
                named(s.scale) if s.scale else None,
                s.grids,
                None if self.alias is None else s.name.replace(old, self.alias),
                s.format,
                tuple(named(name) for name in s.components),
                s.division,
                s.host,
            )


@dataclass(frozen=True)
class RankPlan:
    """What one rank holds, reads and writes.

    ``layers`` is half open; ``draft_layers`` are the stored numbers of its MTP layers. ``carries`` is what the stage
    receives from the previous one. ``held`` are its parameters in layer order.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    dp_rank: int
    ep_rank: int
    layers: tuple[int, int]
    draft_layers: tuple[int, ...]
    carries: tuple[str, ...]
    held: tuple[Held, ...]
    groups: tuple[MoveGroup, ...]
    table: TensorTable

    @cached_property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The rank's parameters, in layer order."""
        return tuple(spec for held in self.held for spec in held.specs())

    @property
    def num_params(self) -> int:
        """Number of the rank's parameters."""
        return sum(len(held.composed) for held in self.held)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the rank's parameters on its device; an alias needs none."""
        return sum(c.device_bytes for held in self.held if held.alias is None for c in held.composed)

    @property
    def host_bytes(self) -> int:
        """Bytes of the rank's parameters that are in the memory of the host, whatever its device is."""
        return self.num_bytes - self.resident_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of all of the rank's parameters."""
        return sum(c.num_bytes for held in self.held if held.alias is None for c in held.composed)

    @property
    def needed_bytes(self) -> int:
        """Bytes of stored tensors that the rank's parameters are made of."""
        return sum(b.needed_bytes for b in self.groups)

    @cached_property
    def reads(self) -> tuple[I32, I64, I64]:
        """The rank's reads in file order: file number, first byte and end, touching spans joined.

        A row-parallel cut is hundreds of bytes apart: a reader takes its whole span and keeps what it needs, so what is
        fetched can be more than what is needed.
        """
        runs = [run for group in self.groups for run in group.runs]
        tensors = [group.tensors[:, view] for group in self.groups for view in range(len(group.runs))]
        counts = [len(ids) for ids in tensors]
        start = self.table.position.take(np.concatenate([np.empty(0, np.int32), *tensors]))
        start += np.repeat(np.array([run.offset for run in runs], dtype=np.int64), counts)
        end = start + np.repeat(np.array([run.span for run in runs], dtype=np.int64), counts)
        order = np.argsort(start, kind="stable")  # fast where they are nearly in order
        start, reach = start[order], np.maximum.accumulate(end[order])
        is_apart = start[1:] > reach[:-1]
        edge = np.ones(min(1, len(start)), dtype=np.bool_)
        start, end = start[np.append(edge, is_apart)], reach[np.append(is_apart, edge)]
        return (start >> FILE_BITS).astype(np.int32), start & OFFSET, end & OFFSET

    def destination(self, group: MoveGroup) -> tuple[StridedRun, I64]:
        """Return the bytes of a group's destination in a parameter (or a slot of it), and where each place's begin."""
        spec = self.specs[group.params[0]]
        shape = spec.shape if group.piece.ids is None else spec.shape[1:]
        to = strided_run(shape, group.box, itemsize(spec.dtype))
        return to, to.offset + group.slots.astype(np.int64) * (prod(shape) * itemsize(spec.dtype))

    def only(self, names: Collection[str]) -> RankPlan:
        """Return the part of the plan that fills the parameters ``names``: of each block all parameters, or none.

        Raises:
            ArgumentError: ``names`` includes only some parameters of a block.
        """
        names = _names(names)
        inside = [[s.name in names for s in h.specs()] for h in self.held]
        for h, is_in in zip(self.held, inside, strict=True):
            if any(is_in) and not all(is_in):
                lacks = next(s.name for s, is_there in zip(h.specs(), is_in, strict=True) if not is_there)
                raise ArgumentError(
                    f"a block is loaded whole or not at all, and {lacks} is not among the tensors given"
                )
        return self._part(inside)

    def in_memory(self, *, host: bool) -> RankPlan:
        """Return the part of the plan that fills the parameters in the memory of the host, or those on the device."""
        return self._part([[c.spec.host == host for c in h.composed] for h in self.held])

    def _part(self, keep: Sequence[Sequence[bool]]) -> RankPlan:
        """Return the part of the plan that fills some of the parameters of each ``held``."""
        every = np.array([kept for of_held in keep for kept in of_held], dtype=np.bool_)
        number = np.where(every, np.cumsum(every) - 1, -1).astype(np.int32)
        parts = (
            replace(h, composed=tuple(c for c, kept in zip(h.composed, of_held, strict=True) if kept))
            for h, of_held in zip(self.held, keep, strict=True)
        )
        groups = (b.renumbered(number) for b in self.groups)
        return replace(
            self,
            held=tuple(h for h in parts if h.composed),
            groups=tuple(b for b in groups if len(b.params)),
        )

    @property
    def num_reads(self) -> int:
        """Number of contiguous ranges read."""
        return len(self.reads[0])

    @property
    def fetched_bytes(self) -> int:
        """Bytes read for what is needed."""
        _, start, end = self.reads
        return int((end - start).sum())

    @property
    def staged_bytes(self) -> int:
        """Bytes that pass through staging memory on their way: strided cuts and operands of operations."""
        return sum(
            len(b.params) * sum(r.span for r in b.runs)
            for b in self.groups
            if not b.is_copy or any(r.counts for r in b.runs)
        )

    def staging_bytes(self, budget: int) -> int:
        """Host memory for staging under a budget: none where every byte goes straight to its parameter."""
        return min(budget, self.staged_bytes)

    def moves(self) -> Iterator[tuple[MoveGroup, int]]:
        """Yield every (group, place)."""
        for group in self.groups:
            for place in range(len(group.params)):
                yield group, place


def _names(given: object) -> frozenset[str]:
    """Return names of parameters as a set.

    Raises:
        ArgumentError: they are not a collection of strings.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Collection):
        raise ArgumentError(f"names is {shown(given)}, expected names of parameters")
    return frozenset(expect("names", name, str, "names of parameters") for name in given)


def derive_rank(plan: PlannedModel, rank: int) -> RankPlan:
    """Return what ``rank`` holds, reads and writes."""
    at = plan.layout.coordinate(rank)
    drafts = _drafts(plan, at.pp_rank)
    builder = _filled(plan, at.pp_rank, at.stage_slot)
    return RankPlan(
        rank=rank,
        pp_rank=at.pp_rank,
        tp_rank=at.tp_rank,
        dp_rank=at.dp_rank,
        ep_rank=at.ep_rank,
        layers=plan.stages[at.pp_rank],
        draft_layers=tuple(drafts),
        carries=tuple(f.name for f in crossing(plan.schema, plan.target, plan.stages[at.pp_rank][0])),
        held=tuple(builder.held),
        groups=tuple(builder.groups()),
        table=plan.table,
    )


def held_at(plan: PlannedModel, pp_rank: int, stage_slot: int) -> tuple[Held, ...]:
    """Return what a stage slot holds, in layer order, without what it reads. Needs what is composed for this slot only."""
    return tuple(_filled(plan, pp_rank, stage_slot).held)


def _drafts(plan: PlannedModel, pp_rank: int) -> range:
    schema, is_last = plan.schema, pp_rank == len(plan.stages) - 1
    return range(len(schema.layers), len(schema.blocks(plan.layout.num_draft_layers if is_last else 0)))


def _filled(plan: PlannedModel, pp_rank: int, stage_slot: int) -> _RankBuilder:
    builder = _RankBuilder(plan, stage_slot)
    params = [p for p in plan.target.params if p.stage is not None and p.is_on(pp_rank, len(plan.stages))]
    builder.add_top([p for p in params if p.stage == "first"])
    drafts = _drafts(plan, pp_rank)
    for layer in (*range(*plan.stages[pp_rank]), *drafts):
        builder.add_block(layer)
    builder.add_top([p for p in params if p.stage != "first"])
    for layer in drafts[:: plan.schema.blocks_a_draft]:
        builder.add_substitutes(layer)
    return builder


class _RankBuilder:
    """Collects what one rank holds, and which pieces fill it."""

    def __init__(self, plan: PlannedModel, stage_slot: int) -> None:
        self.plan = plan
        self.stage_slot = stage_slot
        self.held: list[Held] = []
        self.num_params = 0
        self.holders: dict[str, Held] = {}  # a parameter of the model itself, under all its names -> what holds it
        self.rows: dict[int, tuple[list[int], list[int]]] = {}  # class -> rows, and the first spec of each
        self.top: list[tuple[tuple[PlannedParam, ...], int]] = []

    def add_block(self, layer: int) -> None:
        number, row = self.plan.class_of[layer]
        rows, bases = self.rows.setdefault(number, ([], []))
        rows.append(row)
        bases.append(self.num_params)
        draft = self.plan.target.layer.format(layer=layer)
        self._hold(Held(self.plan.composed[number, self.stage_slot], "{block}", self.plan.block(layer), draft=draft))

    def add_top(self, params: list[Param]) -> None:
        for p in params:
            composed = self.plan.top[self.stage_slot].get(p.name)
            if composed:
                self._add_top_param(composed, p.name, p.name)
            elif p.otherwise and p.parts[0] not in {t.name for t in self.plan.schema.top}:
                self._substitute(p.name, p.otherwise)

    def add_substitutes(self, layer: int) -> None:
        """Add what the draft that begins at ``layer`` shares with the model: the same memory, or a copy if it is not here."""
        number, _ = self.plan.class_of[layer]
        exists = self.plan.classes[number].item_of
        for p in self.plan.target.params:
            if p.stage is None and p.otherwise and p.parts[0] not in exists and layer >= len(self.plan.schema.layers):
                self._substitute(self.plan.named(p.name, layer), p.otherwise)

    def _hold(self, held: Held) -> None:
        self.held.append(held)
        self.num_params += len(held.composed)

    def _substitute(self, name: str, original: str) -> None:
        if held := self.holders.get(original):
            self._hold(replace(held, new=_stem(name), alias=held.new))
            self.holders.setdefault(name, held)
        elif composed := self.plan.top[self.stage_slot].get(original):
            self.holders[original] = self._add_top_param(composed, name, original)

    def _add_top_param(self, composed: tuple[PlannedParam, ...], name: str, original: str) -> Held:
        """Add a parameter of the model itself, all its components, under another name."""
        self.top.append((composed, self.num_params))
        held = Held(composed, _stem(original), _stem(name))
        self._hold(held)
        self.holders[name] = held
        return held

    def groups(self) -> Iterator[MoveGroup]:
        plan = self.plan
        for composed, base in self.top:
            yield from _groups(composed, plan.top_class, [0], [base])
        for number, (rows, bases) in self.rows.items():
            yield from _groups(plan.composed[number, self.stage_slot], plan.classes[number], rows, bases)


def _stem(name: str) -> str:
    """Return what the names of all components of a weight begin with."""
    return name.removesuffix("weight")


def _groups(
    composed: tuple[PlannedParam, ...], bound: LayerClass, rows: Sequence[int], bases: Sequence[int]
) -> Iterator[MoveGroup]:
    """Yield the groups of one class over some of its layers, whose specs begin at ``bases``."""
    at, base = tuple(rows), np.array(bases, dtype=np.int32)
    for local, c in enumerate(composed):
        for move in c.moves:
            yield _group(move, bound, at, base + local)


def _group(move: Move, bound: LayerClass, rows: tuple[int, ...], params: I32) -> MoveGroup:
    piece = move.piece
    tensors = bound.gathered(tuple(v.leaf for v in move.views), rows, piece.ids)
    if piece.ids is None:
        return MoveGroup(piece, move.views, move.runs, tensors, params, np.zeros(len(rows), dtype=np.int32))
    first_slot = piece.box[0][0]
    slots = np.tile(np.arange(first_slot, first_slot + len(piece.ids), dtype=np.int32), len(rows))
    return MoveGroup(piece, move.views, move.runs, tensors, np.repeat(params, len(piece.ids)), slots)
