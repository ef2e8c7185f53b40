"""Plans of tiny checkpoints, and the same plans broken in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from loadmaster.architectures.algebra import Stored
from loadmaster.architectures.lower import Piece
from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.plan.composition import PlannedParam
from tests.conftest import Tiny

Breach = Callable[[PlannedParam], PlannedParam]


def plan_of(tiny: Tiny, preset: str = "llama", *sizes: int, **layout: object) -> Plan:
    return build_plan(open_checkpoint(tiny(preset)), ParallelLayout(*sizes, **layout))  # type: ignore[arg-type]


def broken(plan: Plan, name: str, breach: Breach, place: int = 0) -> Plan:
    """The plan with one parameter of its first class changed, at one place of a stage."""
    made = tuple(breach(c) if c.spec.name.endswith(name) else c for c in plan.composed[0, place])
    assert made != plan.composed[0, place]
    return replace(plan, composed={**plan.composed, (0, place): made})


def pieces(*changed: Piece) -> Breach:
    return lambda c: replace(c, pieces=changed)


def piece_of(plan: Plan, name: str, number: int = 0, place: int = 0) -> Piece:
    return next(c.pieces[number] for c in plan.composed[0, place] if c.spec.name.endswith(name))


def moved(piece: Piece, dim: int, by: int) -> Piece:
    """A piece that reads its box elsewhere in the same tensor."""
    assert isinstance(piece.source, Stored)
    box = list(piece.source.box)
    box[dim] = (box[dim][0] + by, box[dim][1] + by)
    return replace(piece, source=replace(piece.source, box=tuple(box)))
