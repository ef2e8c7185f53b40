"""One stored tensor of a plan: which ranks read what of it, or why none does."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import translate
from typing import Literal

import numpy as np

from loadmaster.architectures.notation import view
from loadmaster.findings import Finding
from loadmaster.plan.binding import Binding, bind
from loadmaster.plan.claims import KV_CACHE_SCALES
from loadmaster.plan.classes import TOP, LayerClass
from loadmaster.plan.composition import parts_of
from loadmaster.plan.explanation.params import TensorRange, tensor_ranges
from loadmaster.plan.plan import Plan, claims_of
from loadmaster.plan.rank import RankPlan

Fate = Literal["read", "waived", "defective", "unexpected", "missing"]


@dataclass(frozen=True, slots=True)
class TensorUse:
    """What some ranks read of a tensor, all of them the same: ``part`` in numpy's notation (empty: all of it).

    ``param`` is the parameter that it goes to, and ``expert`` the slot in it where the parameter is a stack.
    """

    ranks: tuple[int, ...]
    param: str
    part: str
    reads: TensorRange
    slot: int | None


@dataclass(frozen=True, slots=True)
class ExplainedTensor:
    """One stored tensor, and what becomes of it.

    ``fate``: ``read`` by the ``uses``; ``waived``, left unread for ``reason`` (``pattern`` is the user's, with ``--waive``);
    ``defective``, needed by ``params`` that are not complete; ``unexpected``, needed by no parameter; ``missing``, needed or
    named by the index, and not readable: ``file`` and what follows from the header are then None. ``findings`` are those that
    name the tensor, its module or its file.
    """

    name: str
    fate: Fate
    reason: str | None
    pattern: str | None
    dtype: str | None
    shape: tuple[int, ...] | None
    file: str | None
    start: int | None
    num_bytes: int
    uses: tuple[TensorUse, ...]
    params: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that read it."""
        return tuple(sorted({rank for use in self.uses for rank in use.ranks}))


def explain_tensor(plan: Plan, name: str) -> ExplainedTensor | None:
    """Explain a tensor by its exact name; return None if it is neither stored, nor named by the index or a finding."""
    checkpoint, table = plan.checkpoint, plan.table
    number = table.ids.get(name)
    if number is None:
        cause = checkpoint.causes.explain(name)
        findings = _about(plan.findings, name, checkpoint.causes.claimed_file(name))
        if cause is None and not findings:
            return None
        found = tuple(dict.fromkeys([*((cause,) if cause else ()), *findings]))
        file = checkpoint.causes.claimed_file(name)
        return ExplainedTensor(name, "missing", None, None, None, None, file, None, 0, (), (), found)
    signature = table.signatures[table.signature[number]]
    held = _holder(plan, number)
    uses = tuple(_uses(plan, number, held[1] if held else TOP)) if held else ()
    fate, reason, pattern, params = ("read", None, None, ()) if uses else _unread(plan, number, held)
    file = checkpoint.files[table.file[number]].name
    return ExplainedTensor(
        name=name,
        fate=fate,
        reason=reason,
        pattern=pattern,
        dtype=signature.dtype,
        shape=signature.shape,
        file=file,
        start=int(table.start[number]),
        num_bytes=int(table.nbytes[number]),
        uses=uses,
        params=tuple(dict.fromkeys(use.param for use in uses)) or params,
        findings=_about(plan.findings, name, file),
    )


def _holder(plan: Plan, number: int) -> tuple[LayerClass, int, str] | None:
    """Return the class, layer and item (its key) that a stored tensor belongs to; None if it belongs to none."""
    for bound in plan.all_classes:
        for leaf, ids in bound.ids.items():
            rows = np.flatnonzero((ids == number).reshape(len(bound.layers), -1).any(axis=1))
            if len(rows):
                return bound, bound.layers[rows[0]], leaf.partition("/")[0]
    return None


def _uses(plan: Plan, number: int, layer: int) -> Iterator[TensorUse]:
    """Yield what ranks read of a tensor of ``layer``; ranks that read the same share one."""
    ranks: Iterable[int] = range(plan.num_ranks)
    if layer != TOP:
        ranks = plan.layout.stage_ranks(plan.stage_of(layer))
    alike: dict[TensorUse, list[int]] = defaultdict(list)
    for rank in ranks:
        for use in _of_rank(plan, plan.rank(rank), number):
            alike[use].append(rank)
    for use, held_by in alike.items():
        yield replace(use, ranks=tuple(sorted(set(held_by))))


def _of_rank(plan: Plan, rank: RankPlan, number: int) -> Iterator[TensorUse]:
    for group in rank.groups:
        for place, which in np.argwhere(group.tensors == number).tolist():
            reads = list(tensor_ranges(plan, group, [place]))[which]
            slot = int(group.slots[place]) if group.piece.ids is not None else None
            param = rank.specs[int(group.params[place])].name
            yield TensorUse((), param, view(group.views[which]), reads, slot)


def _unread(
    plan: Plan, number: int, held: tuple[LayerClass, int, str] | None
) -> tuple[Fate, str | None, str | None, tuple[str, ...]]:
    """Return the fate of a tensor that no rank reads, with the reason, the user's pattern, and the parameters that need it."""
    name = plan.table.names[number]
    blocks = plan.schema.drafted(plan.layout.num_draft_layers)
    binding = bind(plan.checkpoint, plan.family, plan.schema, claims_of(plan), num_blocks=len(blocks))
    if (reason := _waived(plan, binding, number)) is not None:
        return "waived", reason, None, ()
    if held is not None:
        return "defective", None, None, tuple(_needed_by(plan, *held))
    for request in plan.waive:
        if re.match(translate(request.pattern), name):
            return "waived", request.reason, request.pattern, ()
    return "unexpected", None, None, ()


def _waived(plan: Plan, binding: Binding, number: int) -> str | None:
    for reason, columns in binding.unread.items():
        if any((ids == number).any() for ids in columns):
            return reason
    name = plan.table.names[number]
    if binding.used[number]:
        for pattern, reason in (*plan.family.waived, *plan.schema.waived, *KV_CACHE_SCALES):
            if re.fullmatch(pattern, name):
                return reason
    return None


def _needed_by(plan: Plan, bound: LayerClass, layer: int, key: str) -> Iterator[str]:
    """Yield the parameters that an item is part of, and that are not complete."""
    inside = {t.name for item in bound.items if item.key == key for t in item.parts}
    for param in plan.target.params:
        is_had = param.unless not in bound.item_of
        if is_had and inside.intersection(param.parts) and parts_of(param, bound) is None:
            yield plan.named(param.name, layer) if layer != TOP else param.name


def _about(findings: Iterable[Finding], name: str, file: str | None) -> tuple[Finding, ...]:
    """Return the findings that name a tensor, the module it is in, or its file."""

    def names_it(f: Finding) -> bool:
        if f.tensor is not None:
            return f.tensor == name or (f.tensor.endswith(".*") and name.startswith(f.tensor[:-1]))
        return f.file is not None and f.file == file

    return tuple(f for f in findings if names_it(f))
