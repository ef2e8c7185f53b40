"""Waivers: stored tensors that are left unread, each with a named reason. Nothing is left unread in silence.

Most waivers are the package's own (an MTP layer that is not enabled). A user may ask for more with a `WaiverRequest`: it
covers tensors that no parameter needs, and can never excuse one that is missing or misshapen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from itertools import compress

import numpy as np
import numpy.typing as npt

from loadmaster.arguments import shown
from loadmaster.checkpoint import TensorTable
from loadmaster.errors import ArgumentError, UsageError
from loadmaster.findings import Finding, gib
from loadmaster.plan.classes import LayerClass


@dataclass(frozen=True, slots=True)
class Waiver:
    """A named reason for leaving stored tensors unread; ``pattern`` is the user's, where the user asked for it.

    ``partly``: of each of these tensors a part is read, and ``num_bytes`` are those of the rest.
    """

    reason: str
    num_tensors: int
    num_bytes: int
    pattern: str | None = None
    partly: bool = False

    @property
    def extent(self) -> str:
        """How many tensors, and bytes, as text.

        >>> Waiver("mtp not enabled", 2, 2**30).extent, Waiver("spare rows", 69, 8832, partly=True).extent
        ('2 tensors, 1.00 GiB', 'a part of 69 tensors, 8.6 KiB')
        """
        return f"{'a part of ' if self.partly else ''}{self.num_tensors:,} tensors, {gib(self.num_bytes)}"


@dataclass(frozen=True, slots=True)
class WaiverRequest:
    """A user's request to leave stored tensors unread, and the user's reason.

    ``pattern`` is a glob over whole tensor names, where ``*`` also matches dots.

    Raises:
        UsageError: the pattern or the reason is empty, or not text.
    """

    pattern: str
    reason: str

    def __post_init__(self) -> None:
        for name, value in (("pattern", self.pattern), ("reason", self.reason)):
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"a waiver's {name} is {value!r}, expected text", hint=_WRITTEN)

    @classmethod
    def parse(cls, text: str) -> WaiverRequest:
        """Return what ``PATTERN=REASON`` asks for.

        >>> WaiverRequest.parse("model.vision.*=not used for text")
        WaiverRequest(pattern='model.vision.*', reason='not used for text')

        Raises:
            UsageError: the pattern or the reason is missing.
        """
        pattern, _, reason = text.partition("=")
        if not pattern.strip() or not reason.strip():
            raise UsageError(f"{text!r} has no {'reason' if pattern.strip() else 'pattern'}", hint=_WRITTEN)
        return cls(pattern.strip(), reason.strip())


_WRITTEN = "written PATTERN=REASON, such as 'model.vision.*=not used for text'"


def requests(given: object) -> tuple[WaiverRequest, ...]:
    """Return what a caller gave as waiver requests.

    Raises:
        ArgumentError: it is not a sequence of them.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise ArgumentError(f"waive is {shown(given)}, expected a sequence of WaiverRequest")
    every = tuple(given)
    for request in every:
        if not isinstance(request, WaiverRequest):
            raise ArgumentError(
                f"waive has {shown(request)}, expected a WaiverRequest", hint="WaiverRequest(pattern, reason)"
            )
    return every


def waive_ids(table: TensorTable, reason: str, ids: Sequence[npt.NDArray[np.integer]]) -> list[Waiver]:
    """Waive the tensors of some columns of ids, -1 among them for tensors that are not stored; return nothing where none is."""
    waived = np.zeros(len(table) + 1, dtype=np.bool_)  # the last is for -1
    for column in ids:
        waived[column] = True
    count = int(waived[:-1].sum())
    return [Waiver(reason, count, int(table.nbytes[waived[:-1]].sum()))] if count else []


SPARE = "zeros after the last row that the model has"
"""The reason for leaving the end of a tensor unread (`loadmaster.architectures.Tensor.spare`)."""


def waive_spare(classes: Sequence[LayerClass]) -> list[Waiver]:
    """Waive the rows at the end of stored tensors that the model does not have."""
    spare = [(len(ids), num_bytes) for bound in classes for num_bytes, ids in bound.spare()]
    if not spare:
        return []
    return [Waiver(SPARE, sum(n for n, _ in spare), sum(n * size for n, size in spare), partly=True)]


def waive_names(table: TensorTable, used: npt.NDArray[np.bool_], patterns: Sequence[tuple[str, str]]) -> list[Waiver]:
    """Waive unused tensors whose whole name matches one of (pattern, reason); they are marked as used."""
    waivers: list[Waiver] = []
    unused = np.flatnonzero(~used)
    names = list(table.names.take(unused)) if patterns else []
    for pattern, reason in patterns:
        matched = np.fromiter(map(bool, map(re.compile(pattern).fullmatch, names)), dtype=np.bool_, count=len(names))
        if matched.any():
            used[unused[matched]] = True
            waivers += waive_ids(table, reason, [unused[matched]])
            unused, names = unused[~matched], list(compress(names, ~matched))
    return waivers


def waive_requested(
    table: TensorTable, strays: dict[str, int], read: npt.NDArray[np.bool_], asked: Sequence[WaiverRequest]
) -> tuple[list[Waiver], list[Finding]]:
    """Waive what users asked for, and take it out of ``strays``; ``read`` says which tensors the model reads.

    A pattern that matches a tensor that is read is an error, and one that leaves nothing unread a warning.
    """
    waivers: list[Waiver] = []
    findings: list[Finding] = []
    for request in asked:
        matches = re.compile(translate(request.pattern)).match
        found = [i for i, name in enumerate(table.names) if matches(name)]
        needed = [i for i in found if read[i]]
        mine = [i for name, i in strays.items() if matches(name)]
        for i in mine:
            del strays[table.names[i]]
        granted = waive_ids(table, request.reason, [np.array(mine, dtype=np.int64)])
        waivers += [Waiver(w.reason, w.num_tensors, w.num_bytes, request.pattern) for w in granted]
        if needed:
            findings.append(_of_needed(request, [table.names[i] for i in needed], len(found)))
        elif not mine:
            findings.append(_of_nothing(request, [table.names[i] for i in found]))
    return waivers, findings


def _of_needed(request: WaiverRequest, needed: Sequence[str], num_found: int) -> Finding:
    which = (
        f"{len(needed):,} of the {num_found:,} tensors that it matches are"
        if num_found > 1
        else "it matches one that is"
    )
    return Finding(
        "waiver-read",
        "error",
        f"the waiver {request.pattern!r}: {which} needed by the model and still read: {_names(needed)}",
        hint="a waiver can only cover tensors that no parameter needs; narrow the pattern",
    )


def _of_nothing(request: WaiverRequest, found: Sequence[str]) -> Finding:
    if found:
        what = f"the {len(found):,} tensor(s) that it matches need no waiver: {_names(found)}"
    else:
        what = "it matches no stored tensor"
    return Finding(
        "waiver-unused",
        "warning",
        f"the waiver {request.pattern!r} has no effect: {what}",
        hint="remove or correct it: a pattern must match a whole name, and `loadmaster inspect --match` lists names",
    )


def _names(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
