"""Reads an index as ``json.dump`` writes it, whatever its indent, by columns: its weight_map is not parsed as JSON.

    {"metadata": {…}, "weight_map": {"NAME": "FILE", "NAME": "FILE", …}}

Each of its entries has four quotation marks, and what stands between two strings is the same everywhere.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint.names import Bytes, Names, Positions, count_controls, distinct, is_plain, places, rows
from loadmaster.limits import NAME_CHARACTERS, TENSORS

WeightMap = tuple[Names, npt.NDArray[np.int32], tuple[str, ...]]
"""The tensors' names, for each the position of its file, and the files."""

_OPENING = re.compile(rb'"weight_map"[ \t\r\n]*:[ \t\r\n]*\{[ \t\r\n]*')
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_CLOSING = re.compile(rb"[ \t\r\n]*\}")
_MARKS = 4
"""Quotation marks in an entry."""
_LONGEST_BETWEEN = 64
"""The most bytes between two strings; more are left to the JSON parser."""


def read_plain(text: bytes) -> tuple[WeightMap, bytes] | None:
    """Return the weight_map, and the index's text with an empty one; None for one that has another form, or in doubt."""
    opening = _OPENING.search(text)
    if opening is None or not is_plain(text):
        return None
    array, first = np.frombuffer(text, dtype=np.uint8), opening.end()
    marks = places(array, ord('"'), first, most=_MARKS * (TENSORS.value + 100))
    closed = marks[_MARKS - 1 :: _MARKS]  # the end of each entry, and of strings after them
    lasts = np.flatnonzero(array[np.minimum(closed + 1, len(array) - 1)] != ord(","))
    if len(lasts) == 0 or marks[0] != first:
        return None
    count = int(lasts[0]) + 1
    entries = marks[: _MARKS * count].reshape(count, _MARKS).T
    name_begins, name_ends, file_begins, file_ends = np.ascontiguousarray(entries) + np.array([[1], [0], [1], [0]])
    colon = _between(array, name_ends + 1, file_begins - 1) or b""
    comma = _between(array, file_ends[:-1] + 1, name_begins[1:] - 1) if count > 1 else b","
    closing = _CLOSING.match(text, int(file_ends[-1]) + 1)
    if closing is None or not _COLON.fullmatch(colon) or not _COMMA.fullmatch(comma or b""):
        return None
    longest = max(int((name_ends - name_begins).max()), int((file_ends - file_begins).max()))
    between = ((colon, count), (comma or b"", count - 1))
    controls = sum(count_controls(np.frombuffer(mark, dtype=np.uint8)) * times for mark, times in between)
    if longest > NAME_CHARACTERS.value or count_controls(array[first : int(file_ends[-1])]) != controls:
        return None
    files = distinct(rows(array, file_begins, file_ends)) if longest * count < 4 * len(text) else None
    if files is None:
        return None
    rest = text[:first] + text[closing.end() - 1 :]
    weight_map = Names(array, name_begins, name_ends), files[1], tuple(f.decode() for f in files[0])
    return (weight_map, rest) if rest.count(b'"weight_map"') == 1 else None


def _between(array: Bytes, begins: Positions, ends: Positions) -> bytes | None:
    """Return the bytes between each two strings, where they are the same everywhere."""
    if int((ends - begins).max()) > _LONGEST_BETWEEN or (ends - begins != ends[0] - begins[0]).any():
        return None
    words = rows(array, begins, ends).view(np.uint64)
    return array[begins[0] : ends[0]].tobytes() if (words == words[0]).all() else None
