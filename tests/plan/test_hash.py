"""The plan's hash: pinned for one plan, so that no refactoring changes it unnoticed."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.plan.hash import PLAN_VERSION, hash_plan
from loadmaster.plan.model import PlannedModel
from tests.conftest import Tiny

PINNED = (9, "2e918b47d0ca13b0f46b9b1b21fcd254a197b2275b153c84456517d21daab759")
"""`PLAN_VERSION`, and the hash of the plan below. A new hash needs a new version."""


def _plan(path: Path) -> Plan:
    return build_plan(open_checkpoint(path), ParallelLayout(2))


def test_the_hash_of_one_plan_is_pinned(tiny: Tiny) -> None:
    assert (PLAN_VERSION, _plan(tiny("qwen3")).hash) == PINNED


def test_the_hash_depends_on_no_path_and_no_time(tiny: Tiny, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny("qwen3"), tmp_path / "elsewhere")
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    assert _plan(copy).hash == PINNED[1]


def test_class_names_are_not_part_of_the_hash(tiny: Tiny) -> None:
    plan = _plan(tiny("qwen3"))
    assert hash_plan({}, plan) == hash_plan({}, _renamed(plan))


def test_field_names_are_part_of_the_hash(tiny: Tiny) -> None:
    plan = _plan(tiny("qwen3"))
    assert hash_plan({}, plan) != hash_plan({}, _renamed(plan, field_suffix="_renamed"))


def _renamed(plan: Plan, field_suffix: str = "") -> PlannedModel:
    """Return a plan whose params and forms consist of dataclasses of other names, and of other field names with a suffix."""
    known: dict[int, Any] = {}  # shared params stay shared

    def param(p: Any) -> Any:
        if id(p) not in known:
            known[id(p)] = SimpleNamespace(
                spec=_other(p.spec, field_suffix), pieces=tuple(_other(x, field_suffix) for x in p.pieces)
            )
        return known[id(p)]

    composed = {key: tuple(map(param, params)) for key, params in plan.composed.items()}
    top = {slot: {name: tuple(map(param, ps)) for name, ps in by_name.items()} for slot, by_name in plan.top.items()}
    forms = [{key: _other(form, field_suffix) for key, form in bound.forms.items()} for bound in plan.classes]
    classes = [replace(bound, forms=f) for bound, f in zip(plan.classes, forms, strict=True)]
    return cast("PlannedModel", SimpleNamespace(classes=classes, composed=composed, top=top))


def _other(value: Any, field_suffix: str) -> Any:
    """Return the same fields and values in a dataclass of another name, all the way down."""
    if isinstance(value, (tuple, list)):
        return [_other(v, field_suffix) for v in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    names = [f.name for f in fields(value)]
    other = make_dataclass(f"Other{type(value).__name__}", [n + field_suffix for n in names])
    return other(*(_other(getattr(value, n), field_suffix) for n in names))
