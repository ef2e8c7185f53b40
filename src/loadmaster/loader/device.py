"""Loading onto GPUs: files → page-locked slots → devices, for one rank or for several of one host at once.

Readers take windows in file order. Each fills a slot of page-locked memory, has the copies made from there to where the
plan says, and turns to its other slot meanwhile; row-parallel cuts are copied as boxes, so that the processor never
gathers. What several ranks need is read once, sent to one device, and from there to the others. What must be computed is
computed on the device, from operands that went there the same way.

Copies straight from a registered mapping of the file were measured too: the driver registers 30 GB/s on any number of
threads, and 21 GB/s arrive while copies run; the slots reach 50 of the link's 55 (benchmarks/floor.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch

from loadmaster.architectures.algebra import Expression, Region, leaves
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.checkpoint.store import DIRECT_ALIGNMENT
from loadmaster.errors import LoadError
from loadmaster.loader.driver import Driver
from loadmaster.loader.memory import DeviceArena
from loadmaster.loader.operations import destination, fill, slabs, view_of_span, write
from loadmaster.loader.readers import Task, check_files, run_tasks
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.loader.ring import SLOT_BYTES, SLOTS_PER_READER, Ring
from loadmaster.loader.windows import Windows, copies_of, joined, windows
from loadmaster.plan import Plan, RankPlan
from loadmaster.plan.rank import Batch
from loadmaster.plan.specs import itemsize
from loadmaster.plan.strided import strided_run

IO = Literal["auto", "buffered", "direct"]

MAX_READERS: Final = 32
COLD: Final = 0.5
"""A file of which the page cache holds less than this share is read past it."""


def num_devices() -> int:
    """Return how many GPUs torch finds on this host."""
    return torch.cuda.device_count()


def default_readers() -> int:
    """Return how many readers to use: one a core, for a core is busy copying while it reads."""
    return min(os.cpu_count() or 1, MAX_READERS)


def slot_bytes(readers: int, staging_bytes: int | None) -> int:
    """Return the size of a slot under a budget for all of them."""
    if staging_bytes is None:
        return SLOT_BYTES
    return max(min(SLOT_BYTES, staging_bytes // (readers * SLOTS_PER_READER)) // 2**16, 1) * 2**16


def load_ranks(
    plan: Plan,
    devices: Mapping[int, str | torch.device],
    *,
    store: Store | None = None,
    ring: Ring | None = None,
    on_progress: Callable[[int], None] | None = None,
    num_readers: int | None = None,
    staging_bytes: int | None = None,
    io: IO = "auto",
) -> dict[int, LoadedRank]:
    """Load ranks onto GPUs of this host: rank → device, each its own or several on one.

    ``ring`` is page-locked memory made before; without it, it is made and given back here. ``on_progress`` is called, from
    any reader, with bytes of the plan that are done; the calls sum to the ``needed_bytes`` of all ranks. ``num_readers``
    defaults to the cores, at most 32, each with two slots of 4 MiB; ``staging_bytes`` makes the slots smaller where that
    is less. ``io``: files are read through the page cache, past it, or (``auto``) past it where the cache does not hold them.

    Raises:
        LoadError: a device has too little memory; a file changed, is shorter than planned, or could not be read; a copy
            failed. Names file, tensor and rank. Nothing of any rank is handed out then.
    """
    begin = time.perf_counter()
    readers = num_readers or default_readers()
    derived = {rank: plan.rank(rank) for rank in devices}
    targets = {rank: _device(device) for rank, device in devices.items()}
    own = LocalStore(plan.model_path) if store is None else None
    source = store or own
    assert source is not None
    own_ring: Ring | None = None
    try:
        for rank, d in derived.items():
            check_files(plan, d, source, rank)
        prepared = time.perf_counter()
        arenas = {rank: DeviceArena(d.specs, targets[rank], rank) for rank, d in derived.items()}
        allocated = time.perf_counter()
        if ring is None:
            ring = own_ring = Ring(readers * SLOTS_PER_READER, slot_bytes(readers, staging_bytes))
        readers = min(readers, ring.num_slots // SLOTS_PER_READER)
        pinned = time.perf_counter()
        job = _Job(plan, derived, targets, arenas, source, ring, on_progress or (lambda _: None), io)
        try:
            run_tasks(job.tasks(), readers)
        finally:
            for device in set(targets.values()):
                torch.cuda.synchronize(device)
        for rank, d in derived.items():
            check_files(plan, d, source, rank)
    finally:
        if own_ring is not None:
            own_ring.close()
        if own is not None:
            own.close()
    end = time.perf_counter()
    phases = {
        "prepare": prepared - begin,
        "allocate": allocated - prepared,
        "pin": pinned - allocated,
        "load": end - pinned,
        **job.seconds(readers),
    }
    return {
        rank: LoadedRank(
            d.specs,
            arenas[rank].tensors,
            LoadReport(
                rank=rank,
                needed_bytes=d.needed_bytes,
                fetched_bytes=d.fetched_bytes,
                resident_bytes=d.resident_bytes,
                direct_bytes=job.direct_bytes[rank],
                staged_bytes=d.needed_bytes,
                staging_bytes=ring.num_bytes,
                num_readers=readers,
                num_reads=d.num_reads,
                seconds=end - begin,
                device=str(targets[rank]),
                io=job.io_said,
                phases=phases,
            ),
        )
        for rank, d in derived.items()
    }


def _device(device: str | torch.device) -> torch.device:
    made = torch.device(device)
    if made.type != "cuda":
        raise LoadError(f"{made} is no GPU that this loads onto", hint="use cuda, or cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        raise LoadError(f"{made}: torch finds no GPU", hint="nvidia-smi shows what the driver sees; or use the CPU")
    made = torch.device("cuda", torch.cuda.current_device() if made.index is None else made.index)
    if made.index >= torch.cuda.device_count():
        raise LoadError(f"{made}: torch finds {torch.cuda.device_count()} GPU(s)")
    return made


@dataclass
class _Lane:
    """What one reader has to itself: two slots, and on each device a stream."""

    slots: list[tuple[int, memoryview]]
    streams: list[torch.cuda.Stream]
    sources: np.ndarray
    waiting: list[list[torch.cuda.Event]]  # of each slot: copies that still read from it
    turn: int = 0
    scratch: dict[int, torch.Tensor] = field(default_factory=dict)
    read: float = 0.0
    wait: float = 0.0
    issue: float = 0.0
    operate: float = 0.0


class _Job:
    """The reads of some ranks, as tasks."""

    def __init__(
        self,
        plan: Plan,
        derived: Mapping[int, RankPlan],
        targets: Mapping[int, torch.device],
        arenas: Mapping[int, DeviceArena],
        store: Store,
        ring: Ring,
        on_progress: Callable[[int], None],
        io: IO,
    ) -> None:
        self.plan, self.derived, self.arenas = plan, derived, arenas
        self.store, self.ring, self.on_progress = store, ring, on_progress
        self.table = plan.checkpoint.table
        self.files = [f.name for f in plan.checkpoint.files]
        self.devices = sorted(set(targets.values()), key=lambda d: d.index)
        self.targets = {rank: self.devices.index(device) for rank, device in targets.items()}
        self.driver = Driver()
        self._numbers = iter(range(ring.num_slots))
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        made, self.others, self.direct_bytes = [], {}, {}
        for rank, d in derived.items():
            addresses = np.array(arenas[rank].addresses, dtype=np.int64)
            rows, self.others[rank] = copies_of(d, addresses, self.targets[rank], self.table)
            self.direct_bytes[rank] = int((rows.width * rows.height).sum())
            made.append(rows)
        self.windows: Windows = windows(joined(made), ring.slot_bytes)
        copies = self.windows.copies
        self._low, self._to, self._width = copies.low, copies.to, copies.width
        self._most = int(np.diff(self.windows.first).max(initial=1))
        self.direct, self.io_said = self._choose(io)

    def _choose(self, io: IO) -> tuple[frozenset[int], str]:
        """Return which files are read past the page cache, and how the choice is told."""
        if not isinstance(self.store, LocalStore) or io == "buffered":
            return frozenset(), "buffered: asked for" if io == "buffered" else "as the store reads"
        w = self.windows
        used: dict[int, tuple[int, int]] = {}
        for f, low, high in zip(w.file, w.low, w.high, strict=True):
            first, _ = used.get(f, (low, high))
            used[f] = (first, high)
        cold = []
        for f, (low, high) in used.items():
            if io == "direct" or self.store.cached_share(self.files[f], low, high) < COLD:
                cold.append(f)
        try:
            for f in cold:
                self.store.read_direct(self.files[f], 0, self.ring.slot(0)[1][:0])
        except OSError:
            return frozenset(), "buffered: the file system has no direct I/O"
        if not cold:
            return frozenset(), "buffered: the page cache holds the files"
        what = "asked for" if io == "direct" else f"the page cache does not hold {len(cold)} of {len(used)} files"
        return frozenset(cold), f"direct: {what}"

    def tasks(self) -> Iterator[Task]:
        """Yield tasks: windows in file order, then what is computed."""
        for rank, d in self.derived.items():
            for batch in d.batches:
                if batch.is_fill:
                    fill(self.arenas[rank].tensors, d, batch)
        for device in self.devices:
            torch.cuda.synchronize(device)  # fills and memory that was freed, before other streams write
        for w in range(len(self.windows)):
            yield partial(self._window, w)
        for rank, batches in self.others.items():
            for batch in batches:
                parts = list(slabs(batch.piece.source, self.ring.slot_bytes))
                for place in range(len(batch.params)):
                    for i, (region, part) in enumerate(parts):
                        counted = batch.needed_bytes // len(batch.params) if i == len(parts) - 1 else 0
                        yield partial(self._operation, rank, batch, place, region, part, counted)

    def _lane(self, local: Any) -> _Lane:
        if not hasattr(local, "lane"):
            torch.cuda.set_device(self.devices[0])  # the driver wants a thread to have a device
            with self._lock:
                numbers = [next(self._numbers) for _ in range(SLOTS_PER_READER)]
            local.lane = _Lane(
                [self.ring.slot(n) for n in numbers],
                [torch.cuda.Stream(d) for d in self.devices],
                np.empty(self._most, dtype=np.int64),
                [[] for _ in numbers],
            )
            self._lanes.append(local.lane)
        lane: _Lane = local.lane
        lane.turn = (lane.turn + 1) % SLOTS_PER_READER
        begin = time.perf_counter()
        for event in lane.waiting[lane.turn]:
            event.synchronize()
        lane.waiting[lane.turn].clear()
        lane.wait += time.perf_counter() - begin
        return lane

    def seconds(self, readers: int) -> dict[str, float]:
        """Return what readers spent their time on, on average."""
        names = ("read", "wait", "issue", "operate")
        return {name: sum(getattr(lane, name) for lane in self._lanes) / readers for name in names}

    def _window(self, w: int, local: Any) -> None:
        lane = self._lane(local)
        slots = self.windows
        file, low, high = slots.file[w], slots.low[w], slots.high[w]
        calls = range(slots.calls[w], slots.calls[w + 1])
        begin = time.perf_counter()
        try:
            at = self._read(lane, file, low, high)
            middle = time.perf_counter()
            used = [self._issue(lane, c, at - low) for c in calls]
            for number in set[int]().union(*used):
                lane.waiting[lane.turn].append(lane.streams[number].record_event())
        except (LoadError, OSError, RuntimeError) as error:
            rows = slice(slots.first[calls.start], slots.first[calls.stop])
            raise self._error(file, slots.copies.tensor[rows], slots.copies.device[rows], error) from error
        lane.read += middle - begin
        lane.issue += time.perf_counter() - middle
        self.on_progress(slots.needed[w])

    def _read(self, lane: _Lane, file: int, low: int, high: int) -> int:
        """Fill the lane's slot with a range of a file; return the address of its first byte."""
        address, memory = lane.slots[lane.turn]
        if file not in self.direct:
            self.store.readinto(self.files[file], low, [memory[: high - low]])
            return address
        assert isinstance(self.store, LocalStore)
        begin = low // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT
        length = -(-(high - begin) // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        got = self.store.read_direct(self.files[file], begin, memory[:length])
        if got < high - begin:  # the rest, or the error that there is none
            got = max(got, low - begin)
            self.store.readinto(self.files[file], begin + got, [memory[got : high - begin]])
        return address + low - begin

    def _issue(self, lane: _Lane, call: int, shift: int) -> set[int]:
        """Make the copies of a call; ``shift`` turns a byte of the file into an address. Return whose streams they are on."""
        w = self.windows
        first, stop, device = w.first[call], w.first[call + 1], w.device[call]
        to, width = self._to, self._width
        if w.is_peer[call]:
            origins = w.origin[first:stop].tolist()
            for i, origin in zip(range(first, stop), origins, strict=True):
                stream = lane.streams[int(w.copies.device[origin])].cuda_stream
                self.driver.between(int(to[i]), int(to[origin]), int(width[i]), stream)
            return set(w.copies.device[origins].tolist())
        stream = lane.streams[device].cuda_stream
        if w.copies.height[first] > 1:
            c = w.copies
            self.driver.box(
                int(to[first]), int(c.to_pitch[first]), int(self._low[first]) + shift, int(c.from_pitch[first]),
                int(width[first]), int(c.height[first]), stream,
            )  # fmt: skip
        elif stop - first > 1 and self.driver.has_batches:
            np.add(self._low[first:stop], shift, out=lane.sources[: stop - first])
            sources = lane.sources.ctypes.data
            offset = first * 8
            self.driver.batch(
                to.ctypes.data + offset, sources, width.ctypes.data + offset, stop - first, stream
            )  # fmt: skip
        else:
            for i in range(first, stop):
                self.driver.to_device(int(to[i]), int(self._low[i]) + shift, int(width[i]), stream)
        return {device}

    def _operation(
        self, rank: int, batch: Batch, place: int, region: Region, part: Expression, counted: int, local: Any
    ) -> None:
        """Bring the operands of a part to the device, and compute it there."""
        lane = self._lane(local)
        device = self.targets[rank]
        stream = lane.streams[device]
        address, memory = lane.slots[lane.turn]
        if device not in lane.scratch:
            with torch.cuda.stream(stream):
                lane.scratch[device] = torch.empty(self.ring.slot_bytes, dtype=torch.uint8, device=self.devices[device])
        scratch = lane.scratch[device]
        at, operands, tensors = 0, [], []
        begin = time.perf_counter()
        try:
            for k, view in enumerate(leaves(part)):
                run = strided_run(view.factors, view.box, itemsize(view.dtype))
                tensor = int(batch.tensors[place, k])
                tensors.append(tensor)
                start = int(self.table.start[tensor]) + run.offset
                self.store.readinto(self.files[self.table.file[tensor]], start, [memory[at : at + run.span]])
                operands.append(view_of_span(view, scratch[at : at + run.span]))
                at += -(-run.span // 16) * 16
            middle = time.perf_counter()
            self.driver.to_device(scratch.data_ptr(), address, at, stream.cuda_stream)
            lane.waiting[lane.turn].append(stream.record_event())
            with torch.cuda.stream(stream):
                target = destination(self.arenas[rank].tensors, self.derived[rank], batch, place, region)
                write(target, part, iter(operands))
        except (LoadError, OSError, RuntimeError) as error:
            file = int(self.table.file[tensors[-1]])
            raise self._error(file, np.array(tensors), np.array([device]), error) from error
        lane.read += middle - begin
        lane.operate += time.perf_counter() - middle
        self.on_progress(counted)

    def _error(self, file: int, tensors: np.ndarray, devices: np.ndarray, error: Exception) -> LoadError:
        ids = list(dict.fromkeys(tensors.tolist()))
        names = [self.table.names[i] for i in ids]
        what = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        ranks = sorted(r for r, d in self.targets.items() if d in set(devices.tolist()))
        return LoadError(
            f"rank {', '.join(map(str, ranks))}: {self.files[file]}: loading {what} failed: {error}",
            hint="nothing of the model was handed out",
        )
