"""One rank's share of a plan: its parameters, and what is moved into them, as batches of strided runs.

A batch is one piece of one class over many layers (and experts): the source views and the destination box are stated
once, and numpy columns give the stored tensors, the parameters and the offsets. 15,000 moves are about a hundred batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.algebra import Region, Stored, leaves
from loadmaster.architectures.lower import Piece
from loadmaster.checkpoint import TensorTable
from loadmaster.dtypes import DTYPES
from loadmaster.errors import UnsupportedError
from loadmaster.plan.specs import ParamSpec

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


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
        """Bytes from the first to the end of the last, gaps included."""
        return self.run + sum((n - 1) * s for n, s in zip(self.counts, self.strides, strict=True))


def strided_run(shape: tuple[int, ...], box: Region, itemsize: int) -> StridedRun:
    """Return the bytes of ``box`` in a row-major array of ``shape``.

    A cut of dim 0 (column parallel, experts) is one contiguous run; a cut of dim 1 (row parallel) is one run a row.

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


def itemsize(dtype: str) -> int:
    """Return the bytes of one element.

    Raises:
        UnsupportedError: a format narrower than a byte.
    """
    bits = DTYPES[dtype].bits
    if bits % 8:
        raise UnsupportedError(f"cutting tensors of {dtype}, {bits} bits wide, is not supported yet")
    return bits // 8


@dataclass(frozen=True, slots=True)
class Batch:
    """One piece over ``n`` places.

    ``views`` are the views of stored tensors under the piece's source, left to right, and ``runs`` their bytes in a
    stored tensor. ``tensors`` ``[n, views]`` are stored ids, ``params`` ``[n]`` index the rank's specs, ``slots``
    ``[n]`` are places in the first dim of the parameter (experts; 0 where there are none). ``box`` is the destination
    without that dim.
    """

    piece: Piece
    views: tuple[Stored, ...]
    runs: tuple[StridedRun, ...]
    tensors: I32
    params: I32
    slots: I32

    @property
    def is_copy(self) -> bool:
        """Whether bytes go as they are from the file to the parameter, with no operation between."""
        return isinstance(self.piece.source, Stored) and _is_row_major(self.piece.source)

    @property
    def box(self) -> Region:
        """The destination in the parameter, or in one slot of it."""
        return self.piece.box if self.piece.ids is None else self.piece.box[1:]

    @property
    def needed_bytes(self) -> int:
        """Bytes of stored tensors that go into the batch."""
        return len(self.params) * sum(r.num_bytes for r in self.runs)

    @property
    def is_fill(self) -> bool:
        """Whether it is a constant: nothing is read for it."""
        return not self.views

    def starts(self, table: TensorTable, view: int) -> I64:
        """Return where in its file each place's view begins, in bytes."""
        return np.asarray(table.start[self.tensors[:, view]] + self.runs[view].offset, dtype=np.int64)


def _is_row_major(view: Stored) -> bool:
    return view.order == tuple(sorted(view.order))


def make_batch(piece: Piece, tensors: I32, params: I32, slots: I32) -> Batch:
    """Return the batch of a piece; see `Batch` for the columns."""
    views = tuple(leaves(piece.source))
    runs = tuple(strided_run(v.factors, v.box, itemsize(v.dtype)) for v in views)
    return Batch(piece, views, runs, tensors, params, slots)


@dataclass(frozen=True)
class RankPlan:
    """What one rank holds, reads and writes.

    ``layers`` is half open; ``draft_layers`` are the stored numbers of its MTP layers. ``carries`` is what the stage is
    handed by the one before. ``specs`` are its parameters in layer order.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    dp_rank: int
    ep_rank: int
    layers: tuple[int, int]
    draft_layers: tuple[int, ...]
    carries: tuple[str, ...]
    specs: tuple[ParamSpec, ...]
    batches: tuple[Batch, ...]
    table: TensorTable

    @property
    def resident_bytes(self) -> int:
        """Bytes of the rank's parameters; an alias takes none."""
        return sum(spec_bytes(s) for s in self.specs if s.alias is None)

    @property
    def needed_bytes(self) -> int:
        """Bytes of stored tensors that the rank's parameters are made of."""
        return sum(b.needed_bytes for b in self.batches)

    @cached_property
    def reads(self) -> tuple[I32, I64, I64]:
        """The rank's reads in file order: file number, first byte and end, touching spans joined.

        A row-parallel cut is hundreds of bytes apart: a reader takes its whole span and keeps what it needs, so what is
        fetched can be more than what is needed.
        """
        files, starts, ends = [], [], []
        for batch in self.batches:
            for view, run in enumerate(batch.runs):
                start = batch.starts(self.table, view)
                files.append(self.table.file[batch.tensors[:, view]])
                starts.append(start)
                ends.append(start + run.span)
        if not files:
            return np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)
        file, start, end = np.concatenate(files), np.concatenate(starts), np.concatenate(ends)
        order = np.argsort(file.astype(np.int64) * (1 << 48) + start)  # a file is far smaller than 2^48 bytes
        file, start, end = file[order], start[order], end[order]
        first = np.ones(len(start), dtype=np.bool_)
        reach = end.copy()
        np.maximum.accumulate(end + file.astype(np.int64) * (1 << 48), out=reach)
        reach -= file.astype(np.int64) * (1 << 48)  # how far the reads of this file reach so far
        first[1:] = (file[1:] != file[:-1]) | (start[1:] > reach[:-1])
        last = np.append(np.flatnonzero(first)[1:] - 1, len(start) - 1)
        return file[first], start[first], reach[last]

    @property
    def num_reads(self) -> int:
        """Number of contiguous ranges read."""
        return len(self.reads[0])

    @property
    def fetched_bytes(self) -> int:
        """Bytes read for what is needed."""
        _, start, end = self.reads
        return int((end - start).sum())

    @property
    def staged_bytes(self) -> int:
        """Bytes that pass through staging memory on their way: strided cuts and operands of operations."""
        return sum(
            len(b.params) * sum(r.span for r in b.runs)
            for b in self.batches
            if not b.is_copy or any(r.counts for r in b.runs)
        )

    def staging_bytes(self, budget: int) -> int:
        """Host memory for staging under a budget: none where every byte goes straight to its place."""
        return min(budget, self.staged_bytes)

    def moves(self) -> Iterator[tuple[Batch, int]]:
        """Yield every (batch, place)."""
        for batch in self.batches:
            for place in range(len(batch.params)):
                yield batch, place


def spec_bytes(spec: ParamSpec) -> int:
    """Return the bytes of a parameter."""
    return prod(spec.shape) * itemsize(spec.dtype)
