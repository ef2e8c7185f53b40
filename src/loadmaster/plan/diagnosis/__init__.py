"""Diagnosis: what binding noted, explained: what is missing, renamed, left over, or unlike the config.

Nothing here changes what is planned. Binding, composition and the laws say what is wrong; this room says it in the user's
terms, once, at its cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadmaster.checkpoint import Checkpoint
from loadmaster.findings import Finding
from loadmaster.plan.binding import NOT_ENABLED, Binding, Defect
from loadmaster.plan.claims import Claims
from loadmaster.plan.diagnosis.missing import explain
from loadmaster.plan.diagnosis.names import Names
from loadmaster.plan.diagnosis.remarks import remarks
from loadmaster.plan.diagnosis.strays import unexpected
from loadmaster.plan.waivers import Waiver, WaiverRequest, waive_ids, waive_requested, waive_spare


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``defects`` become findings once their ranks are known; ``findings`` are on the waivers that users asked for."""

    defects: tuple[Defect, ...]
    waivers: tuple[Waiver, ...]
    findings: tuple[Finding, ...]


def diagnose(
    checkpoint: Checkpoint, binding: Binding, claims: Claims, num_layers: int, waive: Sequence[WaiverRequest] = ()
) -> Diagnosis:
    """Explain what binding noted, and waive what is left unread.

    ``num_layers`` is the number of layers without MTP layers. ``waive`` asks for waivers of tensors that are left over.
    """
    table = checkpoint.table
    unread = {reason: list(ids) for reason, ids in binding.unread.items()}
    defects = [*binding.defects, *remarks(binding.sound, claims)]
    requested: list[Waiver] = []
    about_requests: list[Finding] = []
    if waive or binding.missing or not binding.used.all():
        names = Names(table, np.flatnonzero(~binding.used))
        explained, unasked = explain(
            binding.missing, names, checkpoint.causes, binding.items, binding.suffixes, num_layers
        )
        unread[NOT_ENABLED].append(np.array(unasked, dtype=np.int32))
        defects += explained
        if waive:
            requested, about_requests = waive_requested(table, names.strays, binding.read(table), waive)
        defects += unexpected(names, checkpoint, num_layers)
    waivers = [w for reason, ids in unread.items() for w in waive_ids(table, reason, ids)]
    waivers += waive_spare(binding.all_classes)
    return Diagnosis(tuple(defects), (*waivers, *binding.waived_names, *requested), tuple(about_requests))
