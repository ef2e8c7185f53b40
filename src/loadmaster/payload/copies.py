"""Tensors that a model takes for one and the checkpoint stores twice: whether the copies agree.

They are compared by the digests of their blocks, taken when they were read; only the first block that differs is read
again, to tell where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from loadmaster.checkpoint import LocalStore
from loadmaster.findings import Finding
from loadmaster.payload.encodings import encoding_of
from loadmaster.payload.roles import Twin
from loadmaster.payload.survey import Survey
from loadmaster.payload.tally import BLOCK, place

HINT = "one of the two is used, and engines choose differently: have them agree, or store one"


def compare(survey: Survey, blocks: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Yield a finding for each copy that is not what it copies. ``blocks``: tensor → digests of its blocks, in order."""
    names = survey.checkpoint.table.names
    for twin in survey.roles.twins:
        copy, original = names[twin.copy], names[twin.original]
        if twin not in survey.twins:
            a, b = survey.signature(twin.copy), survey.signature(twin.original)
            what = f"is {a.dtype} {list(a.shape)}, and {original} is {b.dtype} {list(b.shape)}"
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
    return place(byte // encoding_of(signature.dtype).size, signature)
