"""Windows of files through slots to devices, and what is computed there on the way.

One thread has windows read by the C library's threads into slots of page-locked memory, has the copies made from there to
where the plan says, and turns to the next; row-parallel cuts are copied as boxes, so that the processor never gathers.
Where the C library or the store offers no such reads, readers take windows through the store instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
import torch

from loadmaster.architectures.algebra import Expression, Region
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.checkpoint.store import DIRECT_ALIGNMENT
from loadmaster.errors import LoadError
from loadmaster.kernels import fp8_dequantise
from loadmaster.loader.cuda.aio import Reads, is_available
from loadmaster.loader.cuda.driver import Driver
from loadmaster.loader.cuda.lane import PHASES, Lane, Slot
from loadmaster.loader.cuda.ring import SLOTS_PER_READER, Ring, device_readers
from loadmaster.loader.cuda.sender import Sender
from loadmaster.loader.cuda.windows import Windows, copies_of, joined, windows
from loadmaster.loader.memory import DeviceArena
from loadmaster.loader.operations import destination, fill, operands_of, slabs, view_of_span, write
from loadmaster.loader.readers import Task, run_tasks
from loadmaster.plan import Plan, RankPlan
from loadmaster.plan.moves import MoveGroup

IO = Literal["auto", "buffered", "direct"]

PROGRESS_BYTES: Final = 2**26
"""Progress is told in steps of this many bytes for each reader."""

KERNELS_FROM: Final = 2**30
"""Bytes to be computed on the way from which kernels are worth a second: Triton compiles them when they are first used."""

QUEUED: Final = 2
"""Reads that wait for a thread of the C library, so that none waits for us; more take slots from what is being copied."""

COLD: Final = 0.5
"""A file of which the page cache holds less than this share is read past it."""


def _aligned(low: int, high: int) -> tuple[int, int]:
    """Return the range of direct I/O that holds another."""
    return low // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT, -(-high // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT


class Transfer:
    """What is read for some ranks of a host, and sent to their devices.

    `fill`, then `run`; `close` when no copy is under way any more.
    """

    def __init__(
        self,
        plan: Plan,
        derived: Mapping[int, RankPlan],
        targets: Mapping[int, torch.device],
        arenas: Mapping[int, DeviceArena],
        store: Store,
        ring: Ring,
        readers: int,
        on_progress: Callable[[int], None],
        io: IO,
    ) -> None:
        self.readers = readers
        self.plan, self.derived, self.arenas = plan, derived, arenas
        self.store, self.ring, self.on_progress = store, ring, on_progress
        self.table = plan.checkpoint.table
        self.files = [f.name for f in plan.checkpoint.files]
        self.devices = sorted(set(targets.values()), key=lambda d: d.index)
        self.targets = {rank: self.devices.index(device) for rank, device in targets.items()}
        self.driver = Driver()
        self.driver.connect(self.devices)
        self.is_conducted = type(store) is LocalStore and is_available(device_readers())
        self._numbers = iter(range(ring.num_slots))
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        made, self.others, self.direct_bytes = [], {}, {}
        for rank, d in derived.items():
            addresses = np.array(arenas[rank].addresses, dtype=np.int64)
            rows, self.others[rank] = copies_of(d, addresses, self.targets[rank], self.table)
            self.direct_bytes[rank] = int((rows.width * rows.height).sum())
            made.append(rows)
        self.computed_bytes = sum(b.needed_bytes for groups in self.others.values() for b in groups)
        self.with_kernels = self.computed_bytes >= KERNELS_FROM and fp8_dequantise.is_available()
        self.windows: Windows = windows(joined(made), ring.slot_bytes)
        self._sender = Sender(self.windows, self.driver)
        self.direct, self.io_said = self._choose(io)
        self.descriptors = (
            {f: store.descriptor(self.files[f], direct=f in self.direct) for f in set(self.windows.file)}
            if isinstance(store, LocalStore)
            else {}
        )

    def _choose(self, io: IO) -> tuple[frozenset[int], str]:
        """Return which files are read past the page cache, and how the choice is told."""
        if not isinstance(self.store, LocalStore) or not self.is_conducted:
            return frozenset(), "as the store reads"
        if io == "buffered":
            return frozenset(), "buffered: asked for"
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
                self.store.descriptor(self.files[f], direct=True)
        except OSError:
            return frozenset(), "buffered: the file system has no direct I/O"
        if not cold:
            return frozenset(), "buffered: the page cache holds the files"
        what = "asked for" if io == "direct" else f"the page cache does not hold {len(cold)} of {len(used)} files"
        return frozenset(cold), f"direct: {what}"

    def fill(self) -> None:
        """Write what is constant, and wait for that and for memory that was freed: other streams write from here on."""
        for rank, d in self.derived.items():
            for group in d.groups:
                if group.is_fill:
                    fill(self.arenas[rank].tensors, d, group)
        for device in self.devices:
            torch.cuda.synchronize(device)

    def run(self) -> None:
        """Read, send on and compute everything: windows by this thread, what is computed by readers beside it.

        Raises:
            LoadError: the first failure, which ends all of it.
        """
        if not (self.is_conducted and len(self.windows)):
            run_tasks(chain(self._window_tasks(), self._operations()), self.readers)
        elif not (beside := self._readers_beside()):
            self._conduct(range(self.ring.num_slots), [])
            run_tasks(self._operations(), self.readers)
        else:
            failures: list[BaseException] = []
            with ThreadPoolExecutor(1) as pool:
                operations = pool.submit(run_tasks, self._operations(), beside, failures)
                try:
                    self._conduct(range(beside * SLOTS_PER_READER, self.ring.num_slots), failures)
                except BaseException as error:
                    failures.append(error)
                    raise
                operations.result()

    def _readers_beside(self) -> int:
        """Return how many readers compute while windows are sent: their share of the bytes, and all but one at most."""
        windows = sum(self.windows.needed)
        share = round(self.readers * self.computed_bytes / (self.computed_bytes + windows))
        return min(max(share, 1), self.readers - 1) if self.computed_bytes else 0

    def _window_tasks(self) -> Iterator[Task]:
        order = iter(range(len(self.windows)))  # shared: whoever is ready takes the next
        for _ in range(self.readers):
            yield partial(self._read_windows, order)

    def _operations(self) -> Iterator[Task]:
        for rank, groups in self.others.items():
            for group in groups:
                parts = list(slabs(group.piece.source, self.ring.slot_bytes))
                for place in range(len(group.params)):
                    for i, (region, part) in enumerate(parts):
                        counted = group.needed_bytes // len(group.params) if i == len(parts) - 1 else 0
                        yield partial(self._operation, rank, group, place, region, part, counted)

    def _lane(self, local: Any) -> Lane:
        if not hasattr(local, "lane"):
            with self._lock:
                slots = [self.ring.slot(next(self._numbers)) for _ in range(SLOTS_PER_READER)]
            local.lane = Lane(self.driver, self.devices, slots, self._sender.most)
            self._lanes.append(local.lane)
        lane: Lane = local.lane
        return lane

    def seconds(self) -> dict[str, float]:
        """Return what all threads together spent their time on."""
        return {name: sum(getattr(lane, name) for lane in self._lanes) for name in PHASES}

    def close(self) -> None:
        """Give back what the readers had. No copy may be under way."""
        for lane in self._lanes:
            lane.close()

    def _conduct(self, slots: range, failures: list[BaseException]) -> None:
        """Have all windows read into some slots by the C library's threads, and send on what has come.

        It is the work of this one thread, which ends early when there are failures elsewhere.
        """
        w, clock = self.windows, time.perf_counter
        lane = Lane(self.driver, self.devices, [self.ring.slot(n) for n in slots], self._sender.most)
        self._lanes.append(lane)
        numbers = range(len(slots))
        free = list(numbers)
        copying = [deque[int]() for _ in self.devices]  # slots, by the device that is copied to first
        at_once = min(self.readers + QUEUED, len(numbers))
        reads, reading = Reads([s.address for s in lane.slots]), [0] * len(numbers)  # slot -> window
        order = iter(range(len(w)))
        window = next(order, None)
        done = 0
        try:
            while (window is not None or reads or any(copying)) and not failures:
                for under_way in copying:
                    while under_way and lane.slots[under_way[0]].is_free():
                        free.append(under_way.popleft())
                while window is not None and free and len(reads) < at_once:
                    number = free.pop()  # the last one freed is still in the processor's cache
                    reading[number] = window
                    self._begin(reads, number, window)
                    window = next(order, None)
                begin = clock()
                if not reads:
                    for under_way in filter(None, copying):
                        lane.slots[under_way[0]].wait()
                    lane.wait += clock() - begin
                    continue
                finished = reads.wait()
                middle = clock()
                for number, got in finished:
                    i, slot = reading[number], lane.slots[number]
                    try:
                        self._sender.send(lane, slot, i, self._arrived(slot, i, got))
                    except (LoadError, OSError, RuntimeError) as error:
                        raise self._window_error(i, error) from error
                    copying[w.device[w.calls[i]]].append(number)
                    done += w.needed[i]
                if done >= PROGRESS_BYTES:
                    self.on_progress(done)
                    done = 0
                lane.read += middle - begin
                lane.issue += clock() - middle
        finally:
            reads.close()
        self.on_progress(done)

    def _begin(self, reads: Reads, number: int, i: int) -> None:
        w = self.windows
        file, low, high = w.file[i], w.low[i], w.high[i]
        if file in self.direct:
            low, high = _aligned(low, high)
        try:
            reads.begin(number, self.descriptors[file], low, high - low)
        except OSError as error:
            raise self._window_error(i, error) from error

    def _arrived(self, slot: Slot, i: int, got: int) -> int:
        """Return the address of a window's first byte, of which ``got`` bytes were read (below 0: the error's code)."""
        w = self.windows
        file, low, high = w.file[i], w.low[i], w.high[i]
        begin = _aligned(low, high)[0] if file in self.direct else low
        if got < 0:
            raise OSError(-got, os.strerror(-got))
        if got < high - begin:  # the rest, or the error that there is none
            got = max(got, low - begin)
            self.store.readinto(self.files[file], begin + got, [slot.memory[got : high - begin]])
        return slot.address + low - begin

    def _read_windows(self, order: Iterator[int], local: Any) -> None:
        """Read windows through the store, until no reader finds another."""
        lane, failures, w = self._lane(local), local.failures, self.windows
        for i in order:
            if failures:
                return
            slot = lane.take()
            begin = time.perf_counter()
            try:
                self.store.readinto(self.files[w.file[i]], w.low[i], [slot.memory[: w.high[i] - w.low[i]]])
                middle = time.perf_counter()
                self._sender.send(lane, slot, i, slot.address)
            except (LoadError, OSError, RuntimeError) as error:
                raise self._window_error(i, error) from error
            lane.read += middle - begin
            lane.issue += time.perf_counter() - middle
            self.on_progress(w.needed[i])

    def _operation(
        self, rank: int, group: MoveGroup, place: int, region: Region, part: Expression, counted: int, local: Any
    ) -> None:
        """Bring the operands of a part to the device, and compute it there."""
        lane, device = self._lane(local), self.targets[rank]
        slot = lane.take()
        address, memory = slot.address, slot.memory
        stream, scratch = lane.torch_streams[device], lane.scratch(device, self.ring.slot_bytes)
        operands = operands_of(part, group, place, self.table)
        reading = operands[0]
        begin = time.perf_counter()
        try:
            for o in operands:
                reading = o
                self.store.readinto(self.files[o.file], o.start, [memory[o.at : o.at + o.span]])
            middle = time.perf_counter()
            self.driver.to_device(scratch.data_ptr(), address, operands[-1].end, slot.streams[device])
            slot.copied(device)
            with torch.cuda.stream(stream):
                target = destination(self.arenas[rank].tensors, self.derived[rank], group, place, region)
                views = (view_of_span(o.view, scratch[o.at : o.at + o.span]) for o in operands)
                write(target, part, views, with_kernels=self.with_kernels)
        except (LoadError, OSError, RuntimeError) as error:
            tensors = np.array([o.tensor for o in operands[: operands.index(reading) + 1]])
            raise self._error(reading.file, tensors, np.array([device]), error) from error
        lane.read += middle - begin
        lane.operate += time.perf_counter() - middle
        self.on_progress(counted)

    def _window_error(self, i: int, error: Exception) -> LoadError:
        w = self.windows
        rows = slice(w.first[w.calls[i]], w.first[w.calls[i + 1]])
        return self._error(w.file[i], w.copies.tensor[rows], w.copies.device[rows], error)

    def _error(self, file: int, tensors: np.ndarray, devices: np.ndarray, error: Exception) -> LoadError:
        ids = list(dict.fromkeys(tensors.tolist()))
        names = [self.table.names[i] for i in ids]
        what = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        ranks = sorted(r for r, d in self.targets.items() if d in set(devices.tolist()))
        return LoadError(
            f"rank {', '.join(map(str, ranks))}: {self.files[file]}: loading {what} failed: {error}",
            hint="nothing of the model was handed out",
        )
