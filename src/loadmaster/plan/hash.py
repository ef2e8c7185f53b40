"""The plan's hash: what all ranks agree on before the first byte is read.

It covers the inputs and everything composed from them, as JSON of named fields: renaming a class changes no plan, renaming
or adding a field changes every plan, and needs a new `PLAN_VERSION`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from loadmaster.plan.composition import PlannedParam
from loadmaster.plan.model import PlannedModel

PLAN_VERSION = 9
"""Raised whenever the meaning of a plan's JSON or hash changes."""


def hash_plan(inputs: Mapping[str, Any], model: PlannedModel) -> str:
    """Return the SHA-256, in hex, of a plan's inputs (JSON values by name) and of what was composed from them."""
    digest = hashlib.sha256()
    digest.update(orjson.dumps({"plan_version": PLAN_VERSION, **inputs}, option=orjson.OPT_SORT_KEYS))
    for bound in model.classes:
        forms = sorted(bound.forms.items())
        digest.update(orjson.dumps({"kind": bound.kind, "layers": bound.layers, "forms": forms}))
        for leaf, ids in bound.ids.items():
            digest.update(leaf.encode())
            digest.update(ids.tobytes())
    known: dict[int, bytes] = {}  # stage slots share what is composed
    for (number, stage_slot), params in model.composed.items():
        digest.update(orjson.dumps({"class": number, "stage_slot": stage_slot}))
        for p in params:
            digest.update(_of_param(p, known))
    for stage_slot, by_name in model.top.items():
        digest.update(orjson.dumps({"top": stage_slot}))
        for params in by_name.values():
            for p in params:
                digest.update(_of_param(p, known))
    return digest.hexdigest()


def _of_param(param: PlannedParam, known: dict[int, bytes]) -> bytes:
    if id(param) not in known:
        named = orjson.dumps({"spec": param.spec, "pieces": param.pieces})  # dataclasses: by the names of their fields
        known[id(param)] = hashlib.sha256(named).digest()
    return known[id(param)]
