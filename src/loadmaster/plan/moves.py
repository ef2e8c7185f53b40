"""Moves: what is read for a piece of a parameter, for one layer (`Move`) and for all layers alike (`MoveGroup`).

A group states the source views and the destination box once; numpy columns give the stored tensors, the parameters and
the offsets. 15,000 moves are about a hundred groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loadmaster.architectures.algebra import Region, Stored, leaves
from loadmaster.architectures.lower import Piece
from loadmaster.checkpoint import TensorTable
from loadmaster.plan.specs import itemsize
from loadmaster.plan.strided import StridedRun, strided_run

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Move:
    """A piece with the views under its source, left to right, and their bytes in a stored tensor."""

    piece: Piece
    views: tuple[Stored, ...]
    runs: tuple[StridedRun, ...]


def move_of(piece: Piece) -> Move:
    """Return what is read for a piece."""
    views = tuple(leaves(piece.source))
    return Move(piece, views, tuple(strided_run(v.factors, v.box, itemsize(v.dtype)) for v in views))


@dataclass(frozen=True, slots=True)
class MoveGroup:
    """One piece over ``n`` places: a layer, or an expert of a layer.

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
        """Whether bytes go unchanged from the file to the parameter."""
        return isinstance(self.piece.source, Stored) and _is_row_major(self.piece.source)

    @property
    def box(self) -> Region:
        """The destination in the parameter, or in one slot of it."""
        return self.piece.box if self.piece.ids is None else self.piece.box[1:]

    @property
    def needed_bytes(self) -> int:
        """Bytes of stored tensors that go into the group."""
        return len(self.params) * sum(r.num_bytes for r in self.runs)

    @property
    def is_fill(self) -> bool:
        """Whether it is a constant: nothing is read for it."""
        return not self.views

    def starts(self, table: TensorTable, view: int) -> I64:
        """Return where in its file each place's view begins, in bytes."""
        return np.asarray(table.start[self.tensors[:, view]] + self.runs[view].offset, dtype=np.int64)

    def renumbered(self, number: I32) -> MoveGroup:
        """Return the places whose parameters have a new number (-1: none), with the new numbers."""
        params = number[self.params]
        kept = params >= 0
        return replace(self, tensors=self.tensors[kept], params=params[kept], slots=self.slots[kept])


def _is_row_major(view: Stored) -> bool:
    return view.order == tuple(sorted(view.order))
