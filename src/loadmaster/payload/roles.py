"""What each stored tensor is, as far as its values are concerned: a weight, a scale, or one that may well be zero.

Names do not tell; the format tables do, through the plan's binding. Where a config cannot be planned nothing is taken for
a scale, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import find_family, language_config
from loadmaster.architectures.schema import TIED_HEAD, Param
from loadmaster.checkpoint import Checkpoint
from loadmaster.dtypes import DTYPES
from loadmaster.errors import InputError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.plan.bind import LayerClass


class Role(IntEnum):
    """What a tensor's values are held against."""

    WEIGHT = 0
    """Finite, and not all zero."""
    QUIET = 1
    """Finite; all zero is ordinary: biases, zero points, indices, and integers that no plan knows."""
    SCALE = 2
    """A factor: positive and of a plausible size."""
    DIVISOR = 3
    """A factor that is divided by: its inverse is of a plausible size."""
    EXPONENT = 4
    """A biased exponent: a power of two that is not too large."""


SCALES: Final = (Role.SCALE, Role.DIVISOR, Role.EXPONENT)

DIVIDED_BY: Final = ("weight_global_scale", "input_global_scale")
"""Components of `loadmaster.formats.NVFP4`, whose values are divided by them."""

_MAY_BE_ZERO: Final = re.compile(r"(.*[._])?(bias|zero_point|qzeros|g_idx|zeros)")


@dataclass(frozen=True, slots=True)
class Twin:
    """Two stored tensors (by id) that the model takes for one: ``copy`` should hold what ``original`` holds."""

    copy: int
    original: int
    why: str


@dataclass(frozen=True, slots=True)
class Roles:
    """``column`` is a `Role` for each stored tensor. ``planned``: whether scales could be told."""

    column: npt.NDArray[np.int8]
    twins: tuple[Twin, ...]
    planned: bool
    findings: tuple[Finding, ...] = ()


def roles_of(checkpoint: Checkpoint) -> Roles:
    """Tell every tensor's role from the format tables, through the plan's binding; MTP layers included."""
    table = checkpoint.table
    floats = np.array([DTYPES[s.dtype].kind in ("float", "complex") for s in table.signatures], dtype=np.bool_)
    column = np.where(floats[table.signature], Role.WEIGHT, Role.QUIET).astype(np.int8)
    column[[i for i, name in enumerate(table.names) if _MAY_BE_ZERO.fullmatch(name)]] = Role.QUIET
    if checkpoint.config is None:
        return Roles(column, (), False)  # which has its finding already
    try:
        plan = _plan(checkpoint)
    except InputError as error:
        message = (
            f"the model cannot be planned ({error.message}): no tensor was checked as a scale, none against a copy"
        )
        return Roles(column, (), False, (Finding(error.code, "note", message, file="config.json", hint=error.hint),))
    for bound in (plan.binding.top, *plan.classes):
        for leaf, role in _leaves(bound):
            ids = bound.ids[leaf].reshape(-1)
            column[ids[ids >= 0]] = role
    exponents = np.array([s.dtype in ("U8", "F8_E8M0") for s in table.signatures], dtype=np.bool_)[table.signature]
    column[(column == Role.SCALE) & exponents] = Role.EXPONENT
    return Roles(column, tuple(_twins(plan)), True)


def _plan(checkpoint: Checkpoint) -> Plan:
    """Plan on one rank, with every MTP layer that the config declares."""
    config = checkpoint.config or {}
    family = find_family(config)
    num_drafts = len(family.schema(Config(language_config(family, config))).drafts)
    return build_plan(checkpoint, ParallelLayout(num_draft_layers=num_drafts))


def _leaves(bound: LayerClass) -> Iterator[tuple[str, Role]]:
    """Yield the leaves of a class's quantised items, each with its role.

    The first component of a format holds values. Of the others those in floating point, and bytes (exponents), are
    factors; the rest are zero points and indices.
    """
    for key, forms in bound.forms.items():
        for format_ in dict.fromkeys(f.format for f in forms if f.format is not None):
            for number, component in enumerate(format_.components):
                leaf = f"{key}/{component.suffix}"
                if leaf not in bound.ids:
                    continue
                factor = all(DTYPES[d].kind == "float" or d == "U8" for d in component.dtypes)
                if number == 0:
                    yield leaf, Role.WEIGHT
                elif not factor:
                    yield leaf, Role.QUIET
                else:
                    yield leaf, Role.DIVISOR if component.suffix in DIVIDED_BY else Role.SCALE


def _twins(plan: Plan) -> Iterator[Twin]:
    """Yield what is stored twice: a draft's own embedding and head, and a head beside a tied embedding."""
    own = plan.binding.top
    targets = {p.name: p for p in plan.target.params}
    for bound in (c for c in plan.classes if c.draft):
        for param in (p for p in plan.target.params if p.otherwise):
            original = _original(targets, param, own)
            ids = bound.ids.get(f"{param.parts[0]}/weight")
            if original is None or ids is None:
                continue
            for copy in ids.reshape(-1).tolist():
                if copy >= 0:
                    yield Twin(copy, original, "the draft's own copy")
    embedding = own.ids.get("embed/weight")
    if plan.schema.tied and embedding is not None and int(embedding.reshape(-1)[0]) >= 0:
        tied = re.compile(TIED_HEAD[0][0])
        heads = (i for i, name in enumerate(plan.checkpoint.table.names) if tied.fullmatch(name))
        yield from (Twin(i, int(embedding.reshape(-1)[0]), "tied to the embedding") for i in heads)


def _original(targets: dict[str, Param], param: Param, own: LayerClass) -> int | None:
    """Return the id of what takes a parameter's place where it is not stored; None where that is not stored either."""
    while param.otherwise is not None:
        param = targets[param.otherwise]
        ids = own.ids.get(f"{param.parts[0]}/weight")
        if ids is not None and int(ids.reshape(-1)[0]) >= 0:
            return int(ids.reshape(-1)[0])
    return None
