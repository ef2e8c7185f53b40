"""A small summary of a tensor for the comparison with its peers: a mark of its bytes, their amplitude, runs of zeros.

A few words of 8 bytes are sampled in each stride; small tensors are read completely. Strides count from the tensor's first
byte, so the order in which parts are seen does not matter. Tensors with the same bytes have the same mark. For tensors with
the same mark, all bytes are compared (`loadmaster.payload.peers`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from loadmaster.dtypes import DTYPES
from loadmaster.payload.encodings import decode, encoding_of
from loadmaster.payload.roles import SCALES, Role

GRAIN: Final = 2**16
"""The largest stride, in bytes; large tensors have it. Parts of a tensor begin at multiples of it."""

_WORDS: Final = 16
"""Words of a sample, 128 bytes: two cache lines, so that sampling costs little compared with reading."""

_SAMPLES: Final = 64
"""Fewest samples of a smaller tensor."""

_PERIOD: Final = 2**13


def _spread() -> npt.NDArray[np.uint64]:
    """Return odd factors, one for each position of a word, over two periods."""
    positions = np.arange(2 * _PERIOD, dtype=np.uint64) % np.uint64(_PERIOD)
    return (positions * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xC2B2AE3D27D4EB4F)) | np.uint64(1)


_SPREAD: Final = _spread()

_INTEGERS: Final = {"I32": "<i4", "I64": "<i8"}

HOLE: Final = 2**9
"""Fewest bytes of zeros that are recorded."""


class Index(NamedTuple):
    """The summary of a tensor that gives the group of each input.

    ``least`` and ``greatest`` are its values, ``fewest`` and ``most`` the inputs of a group, ``ordered`` whether the groups
    follow one another.
    """

    least: int
    greatest: int
    fewest: int
    most: int
    ordered: bool


class Sketch(NamedTuple):
    """The summary of a tensor, as JSON values.

    ``mark`` is equal for equal bytes. ``uniform``: all sampled words are equal. ``amplitude`` is the mean of |value| over the
    samples (for factors the geometric mean); None for packed codes. ``least`` and ``greatest`` are those of all factors.
    ``hole`` is (first byte, bytes) of the longest run of zeros; ``groups`` is for an index only.
    """

    mark: str
    uniform: bool
    amplitude: float | None = None
    least: float | None = None
    greatest: float | None = None
    hole: tuple[int, int] | None = None
    groups: Index | None = None


def sketches_of(tensors: npt.NDArray[np.uint8], dtype: str) -> list[Sketch | None]:
    """Return the sketches of small weights of one kind, ``[tensors, bytes]``, as `Samples` makes them one by one.

    None for those that need a closer look: a value is not finite, or a part may be zeros.
    """
    count, size = tensors.shape
    unsound, zero = encoding_of(dtype).peek_each(tensors)
    samples = Samples(size, dtype, Role.WEIGHT)
    padded = np.zeros((count, -(-size // samples.stride) * samples.stride), dtype=np.uint8)
    padded[:, :size] = tensors
    words = padded.view("<u8").reshape(count, -1, samples.stride // 8)[:, :, :_WORDS]
    filled = np.all(np.any(words, axis=2), axis=1)
    words = words.reshape(count, -1)
    marks = (words * _SPREAD[: words.shape[1]]).sum(axis=1, dtype=np.uint64).tolist()
    uniform = (words.min(axis=1) == words.max(axis=1)).tolist()
    values = samples.amplitudes(words)
    with np.errstate(invalid="ignore"):  # those that are not finite are left out below
        means = [None] * count if values is None else values.sum(axis=1, dtype=np.float64) / values.shape[1]
    closer = (unsound | ~(filled | zero)).tolist()
    return [
        None
        if look
        else Sketch(f"{mark:016x}", same, None if mean is None else float(mean), hole=(0, size) if none else None)
        for look, mark, same, mean, none in zip(closer, marks, uniform, means, zero.tolist(), strict=True)
    ]


@dataclass(slots=True)
class Samples:
    """Collects what a `Sketch` needs, part by part. ``groups`` is the number of groups of an index; 0: not known."""

    num_bytes: int
    dtype: str
    role: int
    groups: int = 0
    group_size: int = 0
    _mark: int = 0
    _low: int = 2**64
    _high: int = -1
    _sum: float = 0.0
    _count: int = 0
    _least: float = np.inf
    _greatest: float = -np.inf
    _holes: list[tuple[int, int]] = field(default_factory=list)
    _members: npt.NDArray[np.int64] | None = None
    _ordered: bool = True

    @property
    def stride(self) -> int:
        """Bytes from one sample to the next."""
        return min(max(8 * _WORDS, 1 << (self.num_bytes // (2 * _SAMPLES)).bit_length()), GRAIN)

    def look(self, part: npt.NDArray[np.uint8], offset: int, *, zero: bool, finite: bool) -> None:
        """Add bytes that begin ``offset`` bytes into the tensor; ``zero`` and ``finite`` say whether all values are."""
        assert offset % GRAIN == 0
        if self.role == Role.INDEX:
            self._count_members(part, offset)
        stride = self.stride
        if tail := len(part) % stride:
            part = np.concatenate([part, np.zeros(stride - tail, dtype=np.uint8)])
        words = part.view("<u8").reshape(-1, stride // 8)[:, :_WORDS].reshape(-1)
        if not len(words):
            return
        position = offset // stride * _WORDS % _PERIOD
        spread = _SPREAD[position : position + len(words)]
        self._mark = (self._mark + int(np.dot(words, spread))) % 2**64
        low = int(words.min())
        self._low, self._high = min(self._low, low), max(self._high, int(words.max()))
        if zero:
            self._holes.append((offset, offset + len(part)))
        elif low == 0 and self.role == Role.WEIGHT:
            self._find_holes(part, offset, words)
        self._measure(words, finite=finite)

    def bounds(self, least: float, greatest: float) -> None:
        """Add the least and the greatest factor of a part."""
        self._least, self._greatest = min(self._least, least), max(self._greatest, greatest)

    def merge(self, other: Samples) -> None:
        """Add the samples of another part."""
        self._mark = (self._mark + other._mark) % 2**64
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._sum, self._count = self._sum + other._sum, self._count + other._count
        self.bounds(other._least, other._greatest)
        self._holes += other._holes
        self._ordered = self._ordered and other._ordered
        if self._members is None:
            self._members = other._members
        elif other._members is not None:
            self._members = self._members + other._members

    def sketch(self) -> Sketch:
        """Return the summary, once all parts were added."""
        amplitude = self._sum / self._count if self._count else None
        if amplitude is not None and self.role in SCALES:
            amplitude = float(2**amplitude)
        bounded = self._least <= self._greatest and np.isfinite([self._least, self._greatest]).all()
        return Sketch(
            mark=f"{self._mark:016x}",
            uniform=self._low == self._high,
            amplitude=amplitude,
            least=float(self._least) if bounded else None,
            greatest=float(self._greatest) if bounded else None,
            hole=self._longest_hole(),
            groups=self._index(),
        )

    def _find_holes(self, part: npt.NDArray[np.uint8], offset: int, words: npt.NDArray[Any]) -> None:
        """Record runs of strides that are all zeros."""
        empty = np.flatnonzero(~words.reshape(-1, _WORDS).any(axis=1))
        empty = empty[~part.reshape(-1, self.stride)[empty].any(axis=1)]
        for run in np.split(empty, np.flatnonzero(np.diff(empty) != 1) + 1):
            if len(run):
                begin, end = int(run[0]) * self.stride, (int(run[-1]) + 1) * self.stride
                if end - begin >= HOLE or begin == 0 or end == len(part):  # it may continue in the next part
                    self._holes.append((offset + begin, offset + end))

    def _longest_hole(self) -> tuple[int, int] | None:
        longest, begin, end = (0, 0), 0, 0
        for start, stop in sorted(self._holes):
            begin, end = (begin, max(end, stop)) if start <= end and end else (start, stop)
            length = min(end, self.num_bytes) - begin
            longest = max(longest, (length, -begin))
        length, begin = longest[0], -longest[1]
        return (begin, length) if length >= min(HOLE, self.num_bytes) and length else None

    def _count_members(self, part: npt.NDArray[np.uint8], offset: int) -> None:
        """Count the inputs of each group; the first and the last count are of values below 0 and beyond the last group."""
        kind = np.dtype(_INTEGERS[self.dtype])
        values = part.view(kind).astype(np.int64)
        if not len(values):
            return
        self.bounds(float(values.min()), float(values.max()))
        if not self.groups:
            return
        members = np.bincount(np.clip(values, -1, self.groups) + 1, minlength=self.groups + 2)
        self._members = members if self._members is None else self._members + members
        if self.group_size:
            at = np.arange(offset // kind.itemsize, offset // kind.itemsize + len(values))
            row = self.groups * self.group_size
            self._ordered = self._ordered and bool((values == at % row // self.group_size).all())

    def _index(self) -> Index | None:
        if self.role != Role.INDEX or self._members is None:
            return None
        inside = self._members[1:-1]
        return Index(int(self._least), int(self._greatest), int(inside.min()), int(inside.max()), self._ordered)

    def _measure(self, words: npt.NDArray[Any], *, finite: bool) -> None:
        if self.role in SCALES:
            factors = decode(encoding_of(self.dtype).codes(words.view(np.uint8)), self.dtype)
            factors = factors[np.isfinite(factors) & (factors > 0)]
            if len(factors):
                self._sum += float(np.log2(factors, dtype=np.float64).sum())
                self._count += len(factors)
            return
        values = self.amplitudes(words)
        if values is None:
            return
        if not finite:
            values = values[np.isfinite(values)]
        self._sum += float(values.sum(dtype=np.float64))
        self._count += len(values)

    def amplitudes(self, words: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """Return the |values| of words, whose last dim they are in; None for packed codes."""
        if DTYPES[self.dtype].kind == "float" and DTYPES[self.dtype].bits >= 8:
            values: npt.NDArray[Any] = np.abs(decode(encoding_of(self.dtype).codes(words.view(np.uint8)), self.dtype))
            return values
        return np.abs(words.view(np.int8).astype(np.int16)) if self.dtype == "I8" else None
