"""Derivation: one rank's parameters and what is moved into them, from the plan's classes, on demand.

What places of a stage, or layers of a class, have in common is made once and shared; a rank adds only names and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadmaster.architectures.schema import Param
from loadmaster.plan.bind import LayerClass
from loadmaster.plan.compose import Composed, Move
from loadmaster.plan.rank import I32, Batch, Held, RankPlan

if TYPE_CHECKING:
    from loadmaster.plan.plan import Plan


def derive(plan: Plan, rank: int) -> RankPlan:
    """Return what ``rank`` holds, reads and writes."""
    at = plan.layout.coordinate(rank)
    first, end = plan.stages[at.pp_rank]
    is_last = at.pp_rank == len(plan.stages) - 1
    builder = _RankBuilder(plan, at.place)
    own = [p for p in plan.target.params if p.stage is not None and p.is_on(at.pp_rank, len(plan.stages))]
    builder.add_top([p for p in own if p.stage == "first"])
    drafts = range(len(plan.schema.layers), len(plan.schema.layers) + plan.layout.num_draft_layers) if is_last else ()
    for layer in (*range(first, end), *drafts):
        builder.add_block(layer)
    builder.add_top([p for p in own if p.stage != "first"])
    for layer in drafts:
        builder.add_substitutes(layer)
    return RankPlan(
        rank=rank,
        pp_rank=at.pp_rank,
        tp_rank=at.tp_rank,
        dp_rank=at.dp_rank,
        ep_rank=at.ep_rank,
        layers=(first, end),
        draft_layers=tuple(drafts),
        carries=plan.schema.carried_into(first),
        held=tuple(builder.held),
        batches=tuple(builder.batches()),
        table=plan.checkpoint.table,
    )


class _RankBuilder:
    """Collects what one rank holds, and which pieces fill it."""

    def __init__(self, plan: Plan, place: int) -> None:
        self.plan = plan
        self.in_stage = place
        self.held: list[Held] = []
        self.num_params = 0
        self.holders: dict[str, Held] = {}  # a parameter of the model itself, under all its names -> what holds it
        self.rows: dict[int, tuple[list[int], list[int]]] = {}  # class -> rows, and the first spec of each
        self.top: list[tuple[tuple[Composed, ...], int]] = []

    def add_block(self, layer: int) -> None:
        number, row = self.plan.place_of[layer]
        rows, bases = self.rows.setdefault(number, ([], []))
        rows.append(row)
        bases.append(self.num_params)
        draft = self.plan.target.layer.format(layer=layer)
        self._hold(Held(self.plan.composed[number, self.in_stage], "{block}", self.plan.block(layer), draft=draft))

    def add_top(self, params: list[Param]) -> None:
        for p in params:
            made = self.plan.top[self.in_stage].get(p.name)
            if made:
                self._add_own(made, p.name, p.name)
            elif p.otherwise and p.parts[0] not in {t.name for t in self.plan.schema.top}:
                self._substitute(p.name, p.otherwise)

    def add_substitutes(self, layer: int) -> None:
        """Add what a draft layer shares with the model: the same memory, or a copy where this rank has none."""
        number, _ = self.plan.place_of[layer]
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
        elif made := self.plan.top[self.in_stage].get(original):
            self.holders[original] = self._add_own(made, name, original)

    def _add_own(self, made: tuple[Composed, ...], name: str, original: str) -> Held:
        """Add a parameter of the model itself, all its components, under a name of its own."""
        self.top.append((made, self.num_params))
        held = Held(made, _stem(original), _stem(name))
        self._hold(held)
        self.holders[name] = held
        return held

    def batches(self) -> Iterator[Batch]:
        plan = self.plan
        for composed, base in self.top:
            yield from _batches(composed, plan.binding.top, [0], [base])
        for number, (rows, bases) in self.rows.items():
            yield from _batches(plan.composed[number, self.in_stage], plan.classes[number], rows, bases)


def _stem(name: str) -> str:
    """Return what the names of all components of a weight begin with."""
    return name.removesuffix("weight")


def _batches(
    composed: tuple[Composed, ...], bound: LayerClass, rows: Sequence[int], bases: Sequence[int]
) -> Iterator[Batch]:
    """Yield the batches of one class over some of its layers, whose specs begin at ``bases``."""
    at, base = np.array(rows), np.array(bases, dtype=np.int32)
    for local, c in enumerate(composed):
        for move in c.moves:
            yield _batch(move, bound, at, base + local)


def _batch(move: Move, bound: LayerClass, rows: np.ndarray, params: I32) -> Batch:
    names, piece = [v.leaf.name for v in move.views], move.piece
    if piece.ids is None:
        none = np.empty((len(rows), 0), dtype=np.int32)  # a constant has no views
        tensors = np.concatenate([none, *(bound.ids[n][rows][:, None] for n in names)], axis=1)
        return Batch(piece, move.views, move.runs, tensors, params, np.zeros(len(rows), dtype=np.int32))
    ids = np.array(piece.ids)
    tensors = np.stack([bound.ids[n][np.ix_(rows, ids)].reshape(-1) for n in names], axis=-1)
    first_slot = piece.box[0][0]
    slots = np.tile(np.arange(first_slot, first_slot + len(ids), dtype=np.int32), len(rows))
    return Batch(piece, move.views, move.runs, tensors, np.repeat(params, len(ids)), slots)
