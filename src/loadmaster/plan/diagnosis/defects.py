"""Defects: what binding finds wrong, with the layers and experts it touches; gathered into findings with their ranks.

A defect is reported once, at its cause. Tensors of a missing shard are reported with that shard; equal defects of many
layers are one finding that counts them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from loadmaster.architectures.schema import Schema
from loadmaster.architectures.target import Target
from loadmaster.findings import Finding, joined, ranges
from loadmaster.parallel import ParallelLayout, stage_of
from loadmaster.plan.binding import Defect
from loadmaster.plan.classes import TOP

MANY = 8
"""Up to this many findings of one code are reported one by one, and up to this many kinds of them separately."""


@dataclass(frozen=True, slots=True)
class Holders:
    """Which ranks hold a layer or an expert. ``stages`` are the layers, half open, of each pipeline stage."""

    target: Target
    schema: Schema
    layout: ParallelLayout
    stages: Sequence[tuple[int, int]]

    def ranks(self, defect: Defect) -> tuple[int, ...]:
        """Return the ranks whose parameters a defect touches."""
        ranks = {r for layer in defect.layers for r in self._of_layer(layer, defect.logical)}
        if defect.experts and self.layout.enable_expert_parallel:
            stage_slots = self._stage_slots(defect)
            ranks = {r for r in ranks if self.layout.coordinate(r).stage_slot in stage_slots}
        return tuple(sorted(ranks))

    def _of_layer(self, layer: int, logical: str) -> Iterable[int]:
        last = len(self.stages) - 1
        if layer == TOP:
            params = [p for p in self.target.params if logical in p.parts and p.stage]
            on = {n for n in range(last + 1) if any(p.is_on(n, last + 1) for p in params)} or {last}
            if logical == "embed" and (self.schema.tied or self.layout.num_draft_layers):
                on.add(last)
        else:
            on = {stage_of(self.stages, layer)}
        return (r for stage in on for r in self.layout.stage_ranks(stage))

    def _stage_slots(self, defect: Defect) -> set[int]:
        """Return the stage slots that hold one of the experts."""
        first = defect.logical.partition("+")[0]
        tensors = (t for kind in self.schema.kinds.values() for t in kind)
        slots = self.layout.expert_slots(next(t.experts for t in tensors if t.name == first))
        wanted = set(defect.experts)
        held = (self.layout.held_slots(len(slots), s) for s in range(self.layout.stage_size))
        return {s for s, (first, end) in enumerate(held) if wanted.intersection(slots[first:end])}

    def waived(self, defect: Defect) -> bool:
        """Whether it touches only MTP layers that are not enabled, which no rank holds."""
        return not self.layout.num_draft_layers and min(defect.layers) >= len(self.schema.layers)


def gather(about_files: Iterable[Finding], defects: Iterable[Defect], holders: Holders) -> tuple[Finding, ...]:
    """Give each defect its ranks; join those that are alike, and those with a cause among the findings about files."""
    alike: dict[tuple[str, str], dict[tuple[str, str], list[Finding]]] = defaultdict(lambda: defaultdict(list))
    caused: dict[Finding, list[Defect]] = defaultdict(list)
    for d in defects:
        if d.cause is not None:
            caused[d.cause].append(d)
            continue
        ranks = () if d.finding.severity == "warning" and holders.waived(d) else holders.ranks(d)
        f = replace(d.finding, ranks=ranks)
        alike[f.code, f.severity][d.logical, without_names(f.message)].append(f)
    findings = [_with_missing(f, caused[f], holders) if f in caused else f for f in about_files]
    for groups in alike.values():
        findings += _grouped(list(groups.values()))
    return tuple(findings)


def _grouped(kinds: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return the findings of one code, by what is alike: one by one, one a kind, or one in all if there are too many."""
    every = [f for kind in kinds for f in kind]
    if len(kinds) > MANY:
        return joined(every)
    return [f for kind in kinds for f in joined(kind, 4 if len(every) <= MANY else 1)]


def without_names(message: str) -> str:
    """Return a message without the names of layers' tensors in it, so that findings that are alike group together."""
    return " ".join(word for word in message.split() if not re.search(r"\.\d+\.", word))


def _with_missing(finding: Finding, lost: Sequence[Defect], holders: Holders) -> Finding:
    """Add to a finding about a file which tensors are missing with it, and for which ranks; needed tensors make it an error."""
    needed = [d for d in lost if d.finding.severity == "error"] or lost
    ranks = sorted({r for d in needed if not holders.waived(d) for r in holders.ranks(d)})
    severity = "error" if needed[0].finding.severity == "error" else finding.severity
    finding = replace(finding, severity=severity, ranks=tuple(ranks))
    if {d.finding.tensor for d in lost} == {finding.tensor}:
        return finding
    inside = [d for d in needed if TOP not in d.layers]
    layers = {n for d in inside for n in d.layers}
    what = [f"{len(inside):,} weights of layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"] if inside else []
    what += sorted({d.finding.tensor or "" for d in needed if TOP in d.layers})
    return replace(finding, message=f"{finding.message}; lost with it: {', '.join(what)}")
