"""A box of a stored tensor as bytes: runs of equal length at equal strides."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from loadmaster.architectures.algebra import Region


@dataclass(frozen=True, slots=True)
class StridedRun:
    """The bytes of a box, in storage order: ``run`` contiguous bytes at each of ``counts`` steps of ``strides`` bytes.

    ``offset`` is from the first byte of the array, ``span`` the distance from the first byte to the end of the last.
    Where ``counts`` is empty the box is one contiguous run.
    """

    offset: int
    run: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the box."""
        return self.run * prod(self.counts)

    @property
    def span(self) -> int:
        """Bytes from the first to the end of the last, including gaps."""
        return self.run + sum((n - 1) * s for n, s in zip(self.counts, self.strides, strict=True))


def strided_run(shape: tuple[int, ...], box: Region, itemsize: int) -> StridedRun:
    """Return the bytes of ``box`` in a row-major array of ``shape``.

    A cut of dim 0 (column parallel, experts) is one contiguous run; a cut of dim 1 (row parallel) is one run per row.

    >>> strided_run((2, 8), ((0, 2), (4, 8)), 2)
    StridedRun(offset=8, run=8, counts=(2,), strides=(16,))
    >>> strided_run((4, 8), ((1, 3), (0, 8)), 2)
    StridedRun(offset=16, run=32, counts=(), strides=())
    """
    stride, offset, run = itemsize, 0, itemsize
    counts: list[int] = []
    strides: list[int] = []
    for n, (a, b) in zip(reversed(shape), reversed(box), strict=True):
        offset += a * stride
        if not counts and run == stride:
            run *= b - a  # everything so far is contiguous
        elif b - a > 1:
            if counts and strides[0] * counts[0] == stride:
                counts[0] *= b - a
            else:
                counts.insert(0, b - a)
                strides.insert(0, stride)
        stride *= n
    return StridedRun(offset, run, tuple(counts), tuple(strides))
