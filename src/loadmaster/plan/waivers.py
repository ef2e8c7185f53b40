"""Waivers: stored tensors that are left unread, each with a named reason. Nothing is left unread in silence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint import TensorTable


@dataclass(frozen=True, slots=True)
class Waiver:
    """A named reason for leaving stored tensors unread."""

    reason: str
    num_tensors: int
    num_bytes: int


def waive(table: TensorTable, reason: str, ids: Sequence[npt.NDArray[np.integer]]) -> list[Waiver]:
    """Waive the tensors of some columns of ids, -1 among them for what is not there; nothing where none is."""
    waived = np.zeros(len(table) + 1, dtype=np.bool_)  # the last is for -1
    for column in ids:
        waived[column] = True
    count = int(waived[:-1].sum())
    return [Waiver(reason, count, int(table.nbytes[waived[:-1]].sum()))] if count else []


def waive_names(table: TensorTable, used: npt.NDArray[np.bool_], patterns: Sequence[tuple[str, str]]) -> list[Waiver]:
    """Waive unused tensors whose whole name matches one of (pattern, reason); they are marked as used."""
    waivers: list[Waiver] = []
    for pattern, reason in patterns:
        matches = re.compile(pattern).fullmatch
        ids = np.array([i for i in np.flatnonzero(~used) if matches(table.names[i])], dtype=np.int64)
        used[ids] = True
        waivers += waive(table, reason, [ids])
    return waivers
