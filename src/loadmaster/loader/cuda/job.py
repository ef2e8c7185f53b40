"""The job of one transfer: which windows are read, how, and what is computed next to them. Values only, made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch

from loadmaster.checkpoint import LocalStore, Store, TensorTable
from loadmaster.errors import LoadError
from loadmaster.loader.cuda.aio import is_available
from loadmaster.loader.cuda.ring import Ring
from loadmaster.loader.cuda.windows import Windows, copies_of, joined, windows
from loadmaster.loader.memory import DeviceArena
from loadmaster.plan import Plan, RankPlan
from loadmaster.plan.moves import MoveGroup

IO = Literal["auto", "buffered", "direct"]

COLD: Final = 0.5
"""A file of which the page cache holds less than this share is read with direct I/O."""


@dataclass(frozen=True)
class TransferJob:
    """What is read for some ranks of a host, and sent to their devices.

    ``devices`` are the devices in order, ``device_of`` gives each rank's number among them. ``windows`` are copied byte for
    byte; ``operations`` gives by rank the groups of moves for which something is computed on the device.
    ``direct_files`` are the numbers of the files that are read with direct I/O, ``io_choice`` says how that was chosen.
    ``is_conducted``: one thread has the C library read the windows; otherwise readers take them through the store.
    """

    rank_plans: Mapping[int, RankPlan]
    arenas: Mapping[int, DeviceArena]
    devices: Sequence[torch.device]
    device_of: Mapping[int, int]
    table: TensorTable
    files: Sequence[str]
    store: Store
    ring: Ring
    num_readers: int
    on_progress: Callable[[int], None]
    windows: Windows
    operations: Mapping[int, Sequence[MoveGroup]]
    direct_bytes: Mapping[int, int]
    is_conducted: bool
    direct_files: frozenset[int]
    io_choice: str

    @cached_property
    def computed_bytes(self) -> int:
        """Stored bytes for which something is computed."""
        return sum(group.needed_bytes for groups in self.operations.values() for group in groups)

    def window_error(self, window: int, error: Exception) -> LoadError:
        """Return the error that says which window failed: its ranks, file and tensors."""
        w = self.windows
        rows = slice(w.first[w.calls[window]], w.first[w.calls[window + 1]])
        return self.error(w.file[window], w.copies.tensor[rows], w.copies.device[rows], error)

    def error(self, file: int, tensors: np.ndarray, devices: np.ndarray, error: Exception) -> LoadError:
        """Return the error that says what failed: ranks, file and tensors."""
        ids = list(dict.fromkeys(tensors.tolist()))
        names = [self.table.names[i] for i in ids]
        what = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        ranks = sorted(r for r, d in self.device_of.items() if d in set(devices.tolist()))
        return LoadError(
            f"rank {', '.join(map(str, ranks))}: {self.files[file]}: loading {what} failed: {error}",
            hint="no part of the model was loaded",
        )


def make_job(
    plan: Plan,
    rank_plans: Mapping[int, RankPlan],
    devices: Mapping[int, torch.device],
    arenas: Mapping[int, DeviceArena],
    store: Store,
    ring: Ring,
    num_readers: int,
    on_progress: Callable[[int], None],
    io: IO,
) -> TransferJob:
    """Return the job that fills the ``arenas`` of some ranks, each on its device."""
    distinct = sorted(set(devices.values()), key=lambda d: d.index)
    device_of = {rank: distinct.index(device) for rank, device in devices.items()}
    table = plan.checkpoint.table
    files = [f.name for f in plan.checkpoint.files]
    copies, operations, direct_bytes = [], {}, {}
    for rank, rank_plan in rank_plans.items():
        addresses = np.array(arenas[rank].addresses, dtype=np.int64)
        rows, operations[rank] = copies_of(rank_plan, addresses, device_of[rank], table)
        direct_bytes[rank] = int((rows.width * rows.height).sum())
        copies.append(rows)
    cut = windows(joined(copies), ring.slot_bytes)
    is_conducted = type(store) is LocalStore and is_available(num_readers)
    direct_files, io_choice = _choose_io(io, store, files, cut, is_conducted=is_conducted)
    return TransferJob(
        rank_plans=rank_plans,
        arenas=arenas,
        devices=distinct,
        device_of=device_of,
        table=table,
        files=files,
        store=store,
        ring=ring,
        num_readers=num_readers,
        on_progress=on_progress,
        windows=cut,
        operations=operations,
        direct_bytes=direct_bytes,
        is_conducted=is_conducted,
        direct_files=direct_files,
        io_choice=io_choice,
    )


def _choose_io(
    io: IO, store: Store, files: Sequence[str], w: Windows, *, is_conducted: bool
) -> tuple[frozenset[int], str]:
    """Return which files are read with direct I/O, and how the choice is reported."""
    if not isinstance(store, LocalStore) or not is_conducted:
        return frozenset(), "as the store reads"
    if io == "buffered":
        return frozenset(), "buffered: asked for"
    used: dict[int, tuple[int, int]] = {}
    for f, low, high in zip(w.file, w.low, w.high, strict=True):
        first, _ = used.get(f, (low, high))
        used[f] = (first, high)
    cold = [f for f, (low, high) in used.items() if io == "direct" or store.cached_share(files[f], low, high) < COLD]
    try:
        for f in cold:
            store.descriptor(files[f], direct=True)
    except OSError:
        return frozenset(), "buffered: the file system has no direct I/O"
    if not cold:
        return frozenset(), "buffered: the page cache holds the files"
    reason = "asked for" if io == "direct" else f"the page cache does not hold {len(cold)} of {len(used)} files"
    return frozenset(cold), f"direct: {reason}"
