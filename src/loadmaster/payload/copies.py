"""Compares tensors that a checkpoint stores twice and the model uses as one.

Digests of their 1 MiB parts, computed while reading, are compared. Only the first part that differs is read again, to find
the first element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from loadmaster.checkpoint import LocalStore
from loadmaster.findings import Finding
from loadmaster.payload.encodings import encoding_of
from loadmaster.payload.roles import Twin
from loadmaster.payload.survey import Survey
from loadmaster.payload.tally import BLOCK, indices_of

HINT = "engines differ in which of the two they use: make them equal, or store only one"


def compare(survey: Survey, blocks: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield a finding for each copy that differs from its original. ``blocks``: tensor → digests of its parts, in order."""
    names = survey.checkpoint.table.names
    for twin in survey.roles.twins:
        copy, original = names[twin.copy], names[twin.original]
        if twin not in survey.twins:
            a, b = survey.signature(twin.copy), survey.signature(twin.original)
            what = f"is {a.dtype} {list(a.shape)}, but {original} is {b.dtype} {list(b.shape)}"
            yield _finding(survey, twin, f"({twin.why}) {what}")
        elif copy in blocks and original in blocks:
            differing = [i for i, (a, b) in enumerate(zip(blocks[copy], blocks[original], strict=True)) if a != b]
            if differing:
                count, total = len(differing), len(blocks[copy])
                parts = f"{count:,} of {total:,} parts of 1 MiB" if total > 1 else "it"
                where = _first_difference(survey, twin, differing[0])
                verb = "differ" if total > 1 else "differs"
                yield _finding(survey, twin, f"({twin.why}) {parts} {verb} from {original}, first at {where}")


def _finding(survey: Survey, twin: Twin, message: str) -> Finding:
    name, file = survey.checkpoint.table.names[twin.copy], survey.file_of(twin.copy)
    return Finding("copy-differs", "warning", message, name, file=file, hint=HINT)


def _first_difference(survey: Survey, twin: Twin, block: int) -> list[int] | str:
    table = survey.checkpoint.table
    length = min(BLOCK, int(table.nbytes[twin.copy]) - block * BLOCK)
    with LocalStore(survey.checkpoint.path) as store:
        a, b = (
            np.frombuffer(store.read_range(survey.file_of(n), int(table.start[n]) + block * BLOCK, length), np.uint8)
            for n in (twin.copy, twin.original)
        )
    signature = survey.signature(twin.copy)
    byte = block * BLOCK + int((a != b).argmax())
    return indices_of(byte // encoding_of(signature.dtype).size, signature)
