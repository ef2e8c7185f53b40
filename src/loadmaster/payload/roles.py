"""Decides how each stored tensor's values are checked: as a weight, a scale, or a tensor that may be all zero.

The plan's binding decides, by the format tables. Tensors that the plan does not bind (there is no plan, or they are not what
the config says) are recognised by the names that the formats use, and checked with the same bounds. Those that neither
decides are not checked, and are counted and named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.schema import TIED_HEAD, Param
from loadmaster.checkpoint import Checkpoint
from loadmaster.dtypes import DTYPES
from loadmaster.errors import InputError
from loadmaster.findings import Finding
from loadmaster.formats import Format
from loadmaster.formats.bitsandbytes import state_of
from loadmaster.parallel import ParallelLayout
from loadmaster.payload.modules import (
    DIVIDED_BY,
    Module,
    is_encoded,
    modules_of,
    named_factor,
    num_groups,
    resembles_factor,
)
from loadmaster.plan import Plan, Proof, build_plan, prove
from loadmaster.plan.classes import Ids, LayerClass
from loadmaster.plan.plan import claims_of


class Role(IntEnum):
    """How a tensor's values are checked."""

    WEIGHT = 0
    """Finite, and not all zero."""
    QUIET = 1
    """Finite; may be all zero: biases, zero points, indices, and integers that no plan knows."""
    SCALE = 2
    """A factor: positive and within plausible bounds."""
    DIVISOR = 3
    """A factor to divide by: its inverse is within plausible bounds."""
    EXPONENT = 4
    """A biased exponent: a power of two that is not too large."""
    INDEX = 5
    """The group of each input: an integer from 0 to the number of groups - 1."""
    ZERO = 6
    """Only zeros: a part of a format that is left unread because it has no effect."""


SCALES: Final = (Role.SCALE, Role.DIVISOR, Role.EXPONENT)

_MAY_BE_ZERO: Final = re.compile(r"(.*[._])?(bias|zero_point|qzeros|g_idx|zeros)")
_INDICES: Final = ("I32", "I64")


@dataclass(frozen=True, slots=True)
class Twin:
    """Two stored tensors (by id) that the model uses as one: ``copy`` should equal ``original``."""

    copy: int
    original: int
    why: str


@dataclass(frozen=True, slots=True)
class Roles:
    """How every stored tensor is checked.

    ``column`` is the `Role` of each. ``proof`` is the proof of the default layout of one rank; None where planning failed, and
    ``unplanned`` says why. ``findings`` are the plan's, with those of the headers, and those about unchecked tensors.
    ``named`` are factors recognised only by name. ``scales`` (tensors named like scales) and ``encoded`` (FP8 or packed) are
    those that could not be checked. ``modules`` are tensors that belong together; ``groups`` gives for an index the number of
    groups and the inputs of each (0: they differ), and ``ordered`` are the indices that are in order by the config. ``spare``
    gives for a tensor that ends with rows that the model does not have how many bytes these are: they have to be zeros.
    ``states`` gives for a text about a weight (`loadmaster.formats.bitsandbytes`) the format that it must agree with.
    """

    column: npt.NDArray[np.int8]
    twins: tuple[Twin, ...]
    proof: Proof | None
    unplanned: str | None
    findings: tuple[Finding, ...]
    named: tuple[int, ...]
    scales: tuple[int, ...]
    encoded: tuple[int, ...]
    num_encoded: int
    modules: dict[str, Module]
    groups: dict[int, tuple[int, int]]
    spare: dict[int, int]
    ordered: frozenset[int]
    states: dict[int, Format]


def roles_of(checkpoint: Checkpoint) -> Roles:
    """Plan and prove the default layout of one rank, and return every tensor's role, including those of MTP layers."""
    table = checkpoint.table
    floats = np.array([DTYPES[s.dtype].kind in ("float", "complex") for s in table.signatures], dtype=np.bool_)
    plain = np.where(floats[table.signature], Role.WEIGHT, Role.QUIET).astype(np.int8)
    column = plain.copy()
    signatures = [table.signatures[number] for number in table.signature.tolist()]
    for number, (name, signature) in enumerate(zip(table.names, signatures, strict=True)):
        divided = named_factor(name, signature)
        signed = (
            name.endswith(".scales") and f"{name.removesuffix('scales')}biases" in table.ids
        )  # MLX's may be negative
        if signed or _MAY_BE_ZERO.fullmatch(name):
            plain[number] = Role.QUIET
            index = name.endswith("g_idx") and signature.dtype in _INDICES
            column[number] = Role.INDEX if index else Role.QUIET
        elif divided is not None:
            column[number] = Role.DIVISOR if divided else Role.SCALE
        elif is_encoded(name, signature):
            column[number] = Role.WEIGHT
    proof, plan, unplanned, findings = _plans(checkpoint)
    planned = np.zeros(len(table), dtype=np.bool_)
    ordered: set[int] = set()
    for bound in plan.all_classes if plan else ():
        for leaf, role, in_order in _leaves(bound):
            ids = bound.ids[leaf].reshape(-1)
            ids = ids[ids >= 0]
            planned[ids] = True
            column[ids] = plain[ids] if role is None else role
            ordered.update(ids.tolist() if in_order else ())
    if plan:
        for ids in _of_zeros(plan):
            column[ids] = Role.ZERO
    exponents = np.array([s.dtype in ("U8", "F8_E8M0") for s in table.signatures], dtype=np.bool_)[table.signature]
    column[(column == Role.SCALE) & exponents] = Role.EXPONENT
    modules = modules_of(table)
    checked = np.isin(column, SCALES)
    named = list(zip(table.names, signatures, strict=True))
    scales = [i for i in np.flatnonzero(~(planned | checked)).tolist() if resembles_factor(*named[i])]
    encoded = [i for i in np.flatnonzero(column == Role.WEIGHT).tolist() if is_encoded(*named[i])]
    scaled = {m.values for m in modules.values() if any(checked[i] for i in m.factors)}
    unscaled = [i for i in encoded if not planned[i] and i not in scaled]
    return Roles(
        column=column,
        twins=tuple(_twins(plan)) if plan else (),
        proof=proof,
        unplanned=unplanned,
        findings=(*findings, *_unchecked(table.names, scales, unscaled)),
        named=tuple(np.flatnonzero(checked & ~planned).tolist()),
        scales=tuple(scales),
        encoded=tuple(unscaled),
        num_encoded=len(encoded),
        modules=modules,
        groups={m.index: sizes for m in modules.values() for sizes in num_groups(table, m)},
        spare={
            i: size for bound in (plan.all_classes if plan else ()) for size, ids in bound.spare() for i in ids.tolist()
        },
        ordered=frozenset(ordered),
        states=dict(_states(plan)) if plan else {},
    )


def _plans(checkpoint: Checkpoint) -> tuple[Proof | None, Plan | None, str | None, tuple[Finding, ...]]:
    """Return the proof of the default layout, the plan for the roles, the reason if there is none, and the findings.

    The plan for the roles includes every MTP layer that the config declares, where possible.
    """
    try:
        plan = build_plan(checkpoint)
        proof = prove(plan)
    except InputError as error:
        finding = Finding(error.code, "error", error.message, file="config.json", hint=error.hint)
        return None, None, error.message, error.findings or (finding,)
    if plan.schema.drafts:
        with suppress(InputError):
            plan = build_plan(checkpoint, ParallelLayout(num_draft_layers=plan.schema.num_drafts))
    return proof, plan, None, proof.findings


def _unchecked(names: Sequence[str], scales: Sequence[int], encoded: Sequence[int]) -> Iterator[Finding]:
    """Yield one finding for each kind of unchecked tensor."""
    for ids, what in (
        (
            scales,
            "is named like a scale, but neither the plan nor its name says what it scales: it was not checked as one",
        ),
        (
            encoded,
            "is FP8 or packed, but its scale is not known: its dequantised values were not checked",
        ),
    ):
        if ids:
            more = f" (and {len(ids) - 1:,} more like it)" if len(ids) > 1 else ""
            hint = "quantization_config in config.json must say how the checkpoint is quantised; --json names them all"
            yield Finding("scale-unchecked", "error", what + more, names[ids[0]], hint=hint)


def _leaves(bound: LayerClass) -> Iterator[tuple[str, Role | None, bool]]:
    """Yield the leaves of a class's sound items, each with its role and whether it is an index of groups in order.

    The role of an unquantised tensor is None: its dtype and name decide. The first component of a format holds values. Of the
    others, floats and bytes (exponents) are factors; the rest are indices and zero points.
    """
    for key, forms in bound.forms.items():
        if any(f.format is None for f in forms) and f"{key}/weight" in bound.ids:
            yield f"{key}/weight", None, False
        for format_ in dict.fromkeys(f.format for f in forms if f.format is not None):
            in_order = not any(g.kind == "whole" for c in format_.components for g in c.grains)
            for number, component in enumerate(format_.components):
                leaf = f"{key}/{component.suffix}"
                if leaf not in bound.ids:
                    continue
                factor = all(DTYPES[d].kind == "float" or d == "U8" for d in component.dtypes) and not component.free
                if number == 0:
                    yield leaf, Role.WEIGHT, False
                elif component.suffix.endswith("g_idx"):
                    yield leaf, Role.INDEX, in_order
                elif not factor:
                    yield leaf, Role.QUIET, False
                else:
                    yield leaf, Role.DIVISOR if component.suffix in DIVIDED_BY else Role.SCALE, False


def _of_zeros(plan: Plan) -> Iterator[Ids]:
    """Yield the tensors that are left unread because their values are zero."""
    suffixes = {c.suffix for f in claims_of(plan).formats for c in f.components if c.zeros}
    for bound in plan.all_classes if suffixes else ():
        for leaf, ids in bound.ids.items():
            if leaf.rpartition("/")[2] in suffixes:
                yield ids[ids >= 0]


def _states(plan: Plan) -> Iterator[tuple[int, Format]]:
    """Yield the texts about weights, each with the format that the headers give the weight."""
    for bound in plan.all_classes:
        for key, forms in bound.forms.items():
            for number, form in enumerate(forms):
                if form.format is None or (suffix := state_of(form.format)) is None:
                    continue
                ids = bound.ids[f"{key}/{suffix}"]
                of_form = ids[:, number] if len(forms) > 1 else ids
                yield from ((i, form.format) for i in of_form.reshape(-1).tolist())


def _twins(plan: Plan) -> Iterator[Twin]:
    """Yield tensors stored twice: a draft model's embedding and head, and a head in addition to a tied embedding."""
    top = plan.top_class
    targets = {p.name: p for p in plan.target.params}
    for bound in (c for c in plan.classes if c.draft):
        for param in (p for p in plan.target.params if p.otherwise):
            original = _original(targets, param, top)
            ids = bound.ids.get(f"{param.parts[0]}/weight")
            if original is None or ids is None:
                continue
            for copy in ids.reshape(-1).tolist():
                if copy >= 0:
                    yield Twin(copy, original, "the draft model's copy")
    embedding = top.ids.get("embed/weight")
    if plan.schema.tied and embedding is not None and int(embedding.reshape(-1)[0]) >= 0:
        tied = re.compile(TIED_HEAD[0][0])
        heads = (i for i, name in enumerate(plan.checkpoint.table.names) if tied.fullmatch(name))
        yield from (Twin(i, int(embedding.reshape(-1)[0]), "tied to the embedding") for i in heads)


def _original(targets: dict[str, Param], param: Param, top: LayerClass) -> int | None:
    """Return the id of the tensor used where a parameter is not stored; None where that is not stored either."""
    while param.otherwise is not None:
        param = targets[param.otherwise]
        ids = top.ids.get(f"{param.parts[0]}/weight")
        if ids is not None and int(ids.reshape(-1)[0]) >= 0:
            return int(ids.reshape(-1)[0])
    return None
