"""One rank's share of a plan: its parameters, and what is moved into them, as batches of strided runs.

A batch is one piece of one class over many layers (and experts): the source views and the destination box are stated
once, and numpy columns give the stored tensors, the parameters and the offsets. 15,000 moves are about a hundred batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.algebra import Region, Stored
from loadmaster.architectures.lower import Piece
from loadmaster.arguments import expect, shown
from loadmaster.checkpoint import TensorTable
from loadmaster.errors import ArgumentError
from loadmaster.plan.compose import Composed
from loadmaster.plan.specs import ParamSpec, itemsize
from loadmaster.plan.strided import StridedRun, strided_run

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


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

    def renumbered(self, number: I32) -> Batch:
        """Return the places whose parameters have a new number (none: -1), under that."""
        params = number[self.params]
        kept = params >= 0
        return replace(self, tensors=self.tensors[kept], params=params[kept], slots=self.slots[kept])


def _names(given: object) -> frozenset[str]:
    """Return names of parameters as a set.

    Raises:
        ArgumentError: they are no collection of strings.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Collection):
        raise ArgumentError(f"names is {shown(given)}, expected names of parameters")
    return frozenset(expect("names", name, str, "names of parameters") for name in given)


def _is_row_major(view: Stored) -> bool:
    return view.order == tuple(sorted(view.order))


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters that a rank holds under names of its own: in those of ``composed``, ``old`` becomes ``new``, and
    ``{draft}`` becomes ``draft``.

    Where ``alias`` is given they are the memory of parameters of the same rank, those whose ``old`` became ``alias``.
    """

    composed: tuple[Composed, ...]
    old: str
    new: str
    alias: str | None = None
    draft: str = ""

    def specs(self) -> Iterator[ParamSpec]:
        """Yield the parameters under the rank's names."""
        old, new = self.old, self.new

        def named(name: str) -> str:
            return name.replace(old, new).replace("{draft}", self.draft)

        for c in self.composed:
            s = c.spec
            yield ParamSpec(
                named(s.name),
                s.shape,
                s.dtype,
                named(s.scale) if s.scale else None,
                s.grids,
                None if self.alias is None else s.name.replace(old, self.alias),
                s.format,
                tuple(named(name) for name in s.components),
            )


@dataclass(frozen=True)
class RankPlan:
    """What one rank holds, reads and writes.

    ``layers`` is half open; ``draft_layers`` are the stored numbers of its MTP layers. ``carries`` is what the stage is
    handed by the one before. ``held`` are its parameters in layer order.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    dp_rank: int
    ep_rank: int
    layers: tuple[int, int]
    draft_layers: tuple[int, ...]
    carries: tuple[str, ...]
    held: tuple[Held, ...]
    batches: tuple[Batch, ...]
    table: TensorTable

    @cached_property
    def specs(self) -> tuple[ParamSpec, ...]:
        """The rank's parameters, in layer order."""
        return tuple(spec for held in self.held for spec in held.specs())

    @property
    def num_params(self) -> int:
        """Number of the rank's parameters."""
        return sum(len(held.composed) for held in self.held)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the rank's parameters; an alias takes none."""
        return sum(c.num_bytes for held in self.held if held.alias is None for c in held.composed)

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

    def target(self, batch: Batch) -> tuple[StridedRun, I64]:
        """Return the bytes of a batch's destination in a parameter (or a slot of it), and where each place's begin there."""
        spec = self.specs[batch.params[0]]
        shape = spec.shape if batch.piece.ids is None else spec.shape[1:]
        to = strided_run(shape, batch.box, itemsize(spec.dtype))
        return to, to.offset + batch.slots.astype(np.int64) * (prod(shape) * itemsize(spec.dtype))

    def only(self, names: Collection[str]) -> RankPlan:
        """Return what of it fills the parameters ``names``; a block has all of its parameters among them or none.

        Raises:
            ArgumentError: only some parameters of a block are among them.
        """
        names = _names(names)
        held, number = [], np.full(self.num_params, -1, dtype=np.int32)
        at = kept = 0
        for h in self.held:
            count = len(h.composed)
            inside = [s.name in names for s in h.specs()]
            if any(inside) and not all(inside):
                lacks = next(s.name for s, is_in in zip(h.specs(), inside, strict=True) if not is_in)
                raise ArgumentError(
                    f"a block is loaded whole or not at all, and {lacks} is not among the tensors given"
                )
            if all(inside):
                held.append(h)
                number[at : at + count] = range(kept, kept + count)
                kept += count
            at += count
        batches = (b.renumbered(number) for b in self.batches)
        return replace(self, held=tuple(held), batches=tuple(b for b in batches if len(b.params)))

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
