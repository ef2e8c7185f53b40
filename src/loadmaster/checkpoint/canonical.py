"""Reads a header in the form that the published safetensors package writes, by columns: no JSON is parsed.

    {"__metadata__":{"format":"pt"},"NAME":{"dtype":"BF16","shape":[7168,512],"data_offsets":[0,7340032]},"NAME":{…}}

Each entry has ten quotation marks, so every tenth begins a name. Where they are tells where all else is: names, forms and
offsets are cut out of the text at once, and every byte between them is compared with what it should be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from loadmaster.checkpoint.names import Bytes, Names, Positions, distinct, is_plain, places, rows
from loadmaster.limits import NAME_CHARACTERS, TENSORS

METADATA = "__metadata__"
"""The key that is not a tensor."""
_BEFORE = re.compile(rb'\{(?:"__metadata__":(\{[^{}]*\}),)?')
_FORM = re.compile(rb'":\{"dtype":"([A-Z0-9_]+)","shape":(\[[\d,]*\]),"data_offsets"')
"""What stands between an entry's name and its offsets."""
_MARKS = 10
"""Quotation marks in an entry."""
_WIDTH = 4
"""How many times the header's bytes its columns may take, which are as wide as the longest of each."""
_LONGEST = 2**10
"""The most bytes between a name and its offsets: more than any number format with as many dims as are allowed."""
_POWERS = 10 ** np.arange(1, 19, dtype=np.int64)


@dataclass(slots=True)
class Header:
    """The entries of one header as parallel columns, in the order of the text.

    ``kinds`` are the (dtype, shape) that occur, ``kind`` is an index into them; ``begins`` and ``ends`` are byte offsets in the
    data.
    """

    names: Names
    kinds: list[tuple[str, tuple[int, ...]]]
    kind: npt.NDArray[np.int32]
    begins: Positions
    ends: Positions


def read_canonical(text: bytes) -> Header | None:
    """Return the entries of a header that has the package's form; None for any other, or in doubt.

    Values are not checked, nor is whether a name stands twice.
    """
    before = _BEFORE.match(text)
    least = int(np.frombuffer(text, dtype=np.uint8).min(initial=0xFF))
    if before is None or least < 0x20 or not is_plain(text) or (before[1] is not None and not _is_metadata(before[1])):
        return None
    body = text.rstrip(b" ")
    array = np.frombuffer(body, dtype=np.uint8)
    marks = places(array, ord('"'), before.end(), most=_MARKS * TENSORS.value)
    if len(marks) == 0 or len(marks) % _MARKS or marks[0] != before.end():
        return None
    opened, closed, last = marks[0::_MARKS], marks[1::_MARKS], marks[9::_MARKS]
    after = np.append(opened[1:], len(body))
    offsets = _offsets(array, last, after)
    names = _names(array, opened + 1, closed)
    forms = _forms(array, closed, last + 1)
    if offsets is None or names is None or forms is None:
        return None
    return Header(names, forms[0], forms[1], offsets[0::2], offsets[1::2])


def _is_metadata(text: bytes) -> bool:
    try:
        value = orjson.loads(text)
    except ValueError:
        return False
    return all(isinstance(v, str) for v in value.values())


def _names(array: Bytes, begins: Positions, ends: Positions) -> Names | None:
    lengths = ends - begins
    if not 0 < lengths.min() <= lengths.max() <= NAME_CHARACTERS.value:
        return None
    names = Names(array, begins, ends)
    return None if METADATA in names.take(np.flatnonzero(lengths == len(METADATA))) else names


def _forms(
    array: Bytes, begins: Positions, ends: Positions
) -> tuple[list[tuple[str, tuple[int, ...]]], npt.NDArray[np.int32]] | None:
    """Return the (dtype, shape) that occur, in order, and which each entry has."""
    longest = int((ends - begins).max())
    if longest > _LONGEST or len(begins) * longest > _WIDTH * len(array):
        return None
    found = distinct(rows(array, begins, ends))
    forms = [_FORM.fullmatch(form) for form in found[0]] if found else []
    try:
        kinds = [(form[1].decode(), tuple(orjson.loads(form[2]))) for form in forms if form is not None]
    except ValueError:
        return None
    return (kinds, found[1]) if found and len(kinds) == len(forms) else None


def _offsets(array: Bytes, last: Positions, after: Positions) -> Positions | None:
    """Return all entries' two offsets, one after another.

    They follow the quotation mark at ``last`` as ``:[A,B]},``, up to the next entry at ``after``; the last entry has a brace in
    place of the comma.
    """
    shortest, longest = len('":[0,0]},'), len('":[,]},') + 2 * 18
    if not shortest <= int((after - last).min()) <= int((after - last).max()) <= longest:
        return None
    ending = np.full(len(last), ord(","), dtype=np.uint8)
    ending[-1] = ord("}")
    sound = all(
        (array[at] == byte).all()
        for at, byte in ((last + 1, ord(":")), (last + 2, ord("[")), (after - 3, ord("]")), (after - 2, ord("}")))
    )
    if not sound or (array[after - 1] != ending).any():
        return None
    matrix = rows(array, last + 3, after - 2)
    return _numbers(matrix[matrix != 0])


def _numbers(text: Bytes) -> Positions | None:
    """Return the numbers of a text ``A,B]A,B]…``; None where it has anything else."""
    marks = text[(text < ord("0")) | (text > ord("9"))]
    if len(marks) % 2 or (marks[0::2] != ord(",")).any() or (marks[1::2] != ord("]")).any():
        return None
    try:
        numbers = np.fromstring(text.tobytes().replace(b"]", b","), dtype=np.int64, sep=",")
    except ValueError:
        return None
    digits = int(np.searchsorted(_POWERS, numbers, side="right").sum()) + len(numbers)
    sound = len(numbers) == len(marks) and int(numbers.max()) < 10**18 and digits + len(marks) == len(text)
    return numbers if sound else None
