"""The names of a checkpoint's tensors: slices of one text, found by fingerprints.

Half a million names as strings, and a dict over them, take longer to make than all else that opening a checkpoint does. So a
name stays where it was read, in its header, and is compared as bytes. A string is made only of a name that is asked for.

A fingerprint only says where to look: two names are the same if their bytes are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import starmap
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from loadmaster.limits import NAME_CHARACTERS

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]
Fingerprints = npt.NDArray[np.uint64]

NAME_BYTES = 4 * NAME_CHARACTERS.value
"""The longest name, in UTF-8."""
CHUNK_BYTES = 2**18
"""How many bytes are searched, or laid side by side, at once: what is noted of each fits the caches."""
_FACTORS = np.frombuffer(os.urandom(NAME_BYTES), dtype=np.uint64) | np.uint64(1)
"""Odd numbers, one for each 8 bytes of a name; others in each process, so that no file can be made of names that collide."""


def is_plain(text: bytes) -> bool:
    """Return whether a text has neither escapes nor characters beyond ASCII, so that its bytes are what it says."""
    return text.isascii() and not (b"\\" in text or b"\x7f" in text)


def places(text: Bytes, byte: int, begin: int, *, most: int) -> Positions:
    """Return where a byte stands in a text from ``begin`` on; nothing where it does more than ``most`` times."""
    parts, found = [np.zeros(0, dtype=np.int64)], 0
    for at in range(begin, len(text), CHUNK_BYTES):
        there = np.flatnonzero(text[at : at + CHUNK_BYTES] == byte)
        there += at
        found += len(there)
        if found > most:
            return parts[0]
        parts.append(there)
    return np.concatenate(parts)


def count_controls(text: Bytes) -> int:
    """Return how many control characters a text has."""
    chunks = (text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES))
    return sum(int(np.count_nonzero(chunk < 0x20)) for chunk in chunks)


def rows(text: Bytes, begins: Positions, ends: Positions, width: int | None = None) -> Bytes:
    """Return slices of a text as the rows of a matrix ``[slices, width]``, with zeros after each slice.

    ``width`` is a multiple of 8 and at least the longest slice's length (None: the least such number).

    >>> rows(np.frombuffer(b"a.bcd.", np.uint8), np.array([0, 2]), np.array([1, 5])).tobytes()
    b'a\\x00\\x00\\x00\\x00\\x00\\x00\\x00bcd\\x00\\x00\\x00\\x00\\x00'
    """
    lengths = ends - begins
    width = width or _width(int(lengths.max(initial=0)))
    if int(begins.max(initial=0)) + width > len(text):
        text = np.append(text, np.zeros(width, dtype=np.uint8))
    windows = np.ndarray((len(text) - width + 1,), f"V{width}", np.ascontiguousarray(text).data, strides=(1,))
    words = windows[begins].view(np.uint64).reshape(-1, width // 8)
    words &= _masks(width).take(lengths, axis=0)
    return words.view(np.uint8)


def _width(longest: int) -> int:
    """Return how wide rows are: the next multiple of 8, and at least that."""
    return max(8, -(-longest // 8) * 8)


def _chunks(lengths: Positions) -> Iterator[slice]:
    """Yield slices of names of these lengths, of which each takes at most `CHUNK_BYTES` as rows."""
    size = max(1, CHUNK_BYTES // (int(lengths.max(initial=1)) + 8))
    return (slice(at, at + size) for at in range(0, len(lengths), size))


@lru_cache
def _masks(width: int) -> npt.NDArray[np.uint64]:
    """Return for each length up to ``width`` a row whose first bytes, that many, have all bits set."""
    return np.where(np.arange(width) < np.arange(width + 1)[:, None], np.uint8(255), np.uint8(0)).view(np.uint64)


def fingerprints(matrix: Bytes) -> Fingerprints:
    """Return a number for each row; zeros at the end of a row do not change it."""
    words = matrix.view(np.uint64)
    return words @ _FACTORS[: words.shape[1]]


def distinct(matrix: Bytes) -> tuple[list[bytes], npt.NDArray[np.int32]] | None:
    """Return the distinct rows of a matrix in the order in which they occur, without zeros at their ends, and which each row is.

    None in the unlikely case that two of them have one fingerprint.

    >>> rows_of = rows(np.frombuffer(b"U8BF16U8", np.uint8), np.array([0, 2, 6]), np.array([2, 6, 8]))
    >>> found, which = distinct(rows_of)
    >>> found, which.tolist()
    ([b'U8', b'BF16'], [0, 1, 0])
    """
    prints = fingerprints(matrix)
    by_print = np.argsort(prints, kind="stable")
    is_new = np.append(True, prints[by_print[1:]] != prints[by_print[:-1]])[: len(prints)]
    firsts, which = by_print[is_new], np.empty(len(prints), dtype=np.int64)
    which[by_print] = np.cumsum(is_new) - 1
    if not (matrix == matrix[firsts[which]]).all():
        return None
    order = np.argsort(firsts)
    return [matrix[i].tobytes().rstrip(b"\0") for i in firsts[order]], np.argsort(order)[which].astype(np.int32)


class Names(Sequence[str]):
    """Names as slices ``[begins, ends)`` of one UTF-8 text, in order; each is at most `NAME_BYTES` long.

    A name's number is its place. ``ids`` gives the numbers of all names, as a dict that is made when it is first asked for.
    ``matrix`` are the names as `rows`, where they have been laid so.
    """

    def __init__(
        self,
        text: Bytes,
        begins: Positions,
        ends: Positions,
        prints: Fingerprints | None = None,
        matrix: Bytes | None = None,
    ) -> None:
        self.text, self.begins, self.ends = text, begins, ends
        self._matrix = matrix
        self.prints = self._fingerprints() if prints is None else prints

    @classmethod
    def of(cls, strings: Sequence[str]) -> Names:
        """Return strings as names.

        >>> list(Names.of(["b", "", "äa"]))
        ['b', '', 'äa']
        """
        encoded = [s.encode() for s in strings]
        ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        begins = np.append(0, ends)[:-1].astype(np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), begins, ends)

    def __len__(self) -> int:
        return len(self.begins)

    def __iter__(self) -> Iterator[str]:
        """Yield the names, many of them made at once: one by one each takes three times as long."""
        lengths = self.ends - self.begins
        for c in _chunks(lengths):
            if (self.text[self.ends[c][lengths[c] > 0] - 1] == 0).any():  # zeros at the end would be taken for room
                yield from starmap(self._string, zip(self.begins[c].tolist(), self.ends[c].tolist(), strict=True))
            else:
                matrix = self._rows(c)
                yield from map(bytes.decode, matrix.view(f"S{matrix.shape[1]}").reshape(-1).tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, number: int | np.integer[Any]) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | np.integer[Any] | slice) -> str | list[str]:
        if isinstance(number, slice):
            return list(self.take(np.arange(len(self))[number]))
        return self._string(self.begins[number], self.ends[number])

    def _string(self, begin: int, end: int) -> str:
        return self.text[begin:end].tobytes().decode()

    def take(self, numbers: npt.NDArray[np.integer]) -> Names:
        """Return some of the names, in the order of ``numbers``; they share this text."""
        matrix = None if self._matrix is None else self._matrix[numbers]
        return Names(self.text, self.begins[numbers], self.ends[numbers], self.prints[numbers], matrix)

    def _rows(self, some: slice | Positions) -> Bytes:
        """Return some of the names as `rows`."""
        return rows(self.text, self.begins[some], self.ends[some]) if self._matrix is None else self._matrix[some]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Name → number; of two that are the same, the second's."""
        return dict(zip(self, range(len(self)), strict=True))

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """The numbers, by fingerprint."""
        return np.argsort(self.prints)

    @cached_property
    def _sorted(self) -> Fingerprints:
        return self.prints[self._order]

    def _fingerprints(self) -> Fingerprints:
        parts = [fingerprints(self._rows(c)) for c in _chunks(self.ends - self.begins)]
        return np.concatenate([np.zeros(0, dtype=np.uint64), *parts])

    def find(self, wanted: Sequence[str]) -> Positions:
        """Return the number of each wanted name, -1 for one that is not here.

        >>> Names.of(["x.a", "x.b"]).find(["x.b", "x.c", "x.a"]).tolist()
        [1, -1, 0]
        """
        return self._find(wanted if isinstance(wanted, Names) else Names.of(wanted))

    def find_numbered(self, around: Sequence[tuple[str, str]], count: int) -> Positions:
        """Return ``[len(around), count]``: the numbers of the names ``before + number + after`` for 0 to below ``count``.

        >>> Names.of([f"experts.{i}.w" for i in range(9, 12)]).find_numbered([("experts.", ".w"), ("a.", "")], 13).tolist()[0]
        [-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 2, -1]
        """
        most = len(str(count))
        width = _width(max((len(before.encode()) + most + len(after.encode()) for before, after in around), default=0))
        matrix = np.zeros((len(around), count, width), dtype=np.uint8)
        lengths = np.zeros((len(around), count), dtype=np.int64)
        for digits in range(1, most + 1):
            some = slice(10 ** (digits - 1) if digits > 1 else 0, min(10**digits, count))
            numbers = np.arange(some.start, some.stop)[:, None] // 10 ** np.arange(digits)[::-1] % 10 + ord("0")
            for row, (before, after) in enumerate(around):
                first, last = (np.frombuffer(part.encode(), dtype=np.uint8) for part in (before, after))
                at = len(first) + digits
                matrix[row, some, : len(first)] = first
                matrix[row, some, len(first) : at] = numbers
                matrix[row, some, at : at + len(last)] = last
                lengths[row, some] = at + len(last)
        begins = np.arange(lengths.size) * width
        ends = begins + lengths.reshape(-1)
        wanted = Names(matrix.reshape(-1), begins, ends, matrix=matrix.reshape(-1, width))
        return self._find(wanted).reshape(lengths.shape)

    def _find(self, wanted: Names) -> Positions:
        found = np.full(len(wanted), -1, dtype=np.int64)
        order = np.argsort(wanted.prints)  # neighbours are found near each other
        place = np.empty(len(wanted), dtype=np.int64)
        place[order] = np.searchsorted(self._sorted, wanted.prints[order])
        left = np.flatnonzero(place < len(self))
        while len(left):  # again only where two names have one fingerprint
            left = left[self._sorted[place[left]] == wanted.prints[left]]
            same = self._are_same(self._order[place[left]], wanted, left)
            found[left[same]] = self._order[place[left[same]]]
            left = left[~same]
            place[left] += 1
            left = left[place[left] < len(self)]
        return found

    def _are_same(self, mine: Positions, others: Names, theirs: Positions) -> npt.NDArray[np.bool_]:
        """Return which of my names are the same as others, one by one."""
        lengths = self.ends[mine] - self.begins[mine]
        same: npt.NDArray[np.bool_] = lengths == others.ends[theirs] - others.begins[theirs]
        for c in _chunks(lengths):
            here = np.flatnonzero(same[c]) + c.start
            x, y = self._rows(mine[here]).view(np.uint64), others._rows(theirs[here]).view(np.uint64)
            both = min(x.shape[1], y.shape[1])
            same[here] = (x[:, :both] == y[:, :both]).all(axis=1)
        return same

    def matched(self, others: Names) -> Positions | None:
        """Return for each of mine the number of the same name in ``others``; None unless both have the same names, each once.

        >>> Names.of(["b", "a"]).matched(Names.of(["a", "b"])).tolist()
        [1, 0]
        """
        if len(self) != len(others) or not np.array_equal(self._sorted, others._sorted) or self._has_twins:
            return None
        numbers = np.empty(len(self), dtype=np.int64)
        numbers[self._order] = others._order
        return numbers if self._are_same(np.arange(len(self)), others, numbers).all() else None

    @property
    def _has_twins(self) -> bool:
        """Whether two names have the same fingerprint."""
        return bool((self._sorted[1:] == self._sorted[:-1]).any())

    def repeated(self) -> dict[int, int]:
        """Return number → number of the first name that is the same, for names that are not the first.

        >>> Names.of(["a", "b", "a", "a"]).repeated()
        {2: 0, 3: 0}
        """
        twins = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        numbers = sorted(set(self._order[np.append(twins, twins + 1)].tolist()))
        first: dict[str, int] = {}
        places = ((i, first.setdefault(self[i], i)) for i in numbers)
        return {i: one for i, one in places if one != i}
