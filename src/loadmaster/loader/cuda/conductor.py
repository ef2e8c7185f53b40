"""The conductor: one thread that has the C library read windows into slots, and sends on each that has arrived."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from loadmaster.checkpoint import LocalStore
from loadmaster.checkpoint.store import DIRECT_ALIGNMENT
from loadmaster.errors import LoadError
from loadmaster.loader.cuda.aio import Reads
from loadmaster.loader.cuda.job import TransferJob
from loadmaster.loader.cuda.lane import Lane, Slot
from loadmaster.loader.cuda.sender import Sender

PROGRESS_BYTES: Final = 2**26
"""Progress is reported in steps of this many bytes."""

QUEUED: Final = 2
"""Reads that wait for a thread of the C library, so that none waits for us; more take slots from what is being copied."""


class Conductor:
    """Reads all windows of a job with the C library's threads. `run` is the work of the one thread that calls it."""

    def __init__(self, job: TransferJob, sender: Sender) -> None:
        self._job, self._sender = job, sender
        store = job.store
        assert isinstance(store, LocalStore)
        direct = job.direct_files
        self._descriptors = {f: store.descriptor(job.files[f], direct=f in direct) for f in set(job.windows.file)}

    def run(self, lane: Lane, failures: list[BaseException]) -> None:
        """Read every window into a slot of ``lane`` and send it on; end early when there are ``failures`` elsewhere.

        Raises:
            LoadError: a window could not be read or copied.
        """
        w, clock = self._job.windows, time.perf_counter
        numbers = range(len(lane.slots))
        free = list(numbers)
        copying = [deque[int]() for _ in self._job.devices]  # slots, by the device that is copied to first
        at_once = min(self._job.num_readers + QUEUED, len(numbers))
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
                for number, num_read in finished:
                    i, slot = reading[number], lane.slots[number]
                    try:
                        self._sender.send(lane, slot, i, self._address(slot, i, num_read))
                    except (LoadError, OSError, RuntimeError) as error:
                        raise self._job.window_error(i, error) from error
                    copying[w.device[w.calls[i]]].append(number)
                    done += w.needed[i]
                if done >= PROGRESS_BYTES:
                    self._job.on_progress(done)
                    done = 0
                lane.read += middle - begin
                lane.issue += clock() - middle
        finally:
            reads.close()
        self._job.on_progress(done)

    def _begin(self, reads: Reads, number: int, i: int) -> None:
        w = self._job.windows
        file, low, high = w.file[i], w.low[i], w.high[i]
        if file in self._job.direct_files:
            low, high = _aligned(low, high)
        try:
            reads.begin(number, self._descriptors[file], low, high - low)
        except OSError as error:
            raise self._job.window_error(i, error) from error

    def _address(self, slot: Slot, i: int, num_read: int) -> int:
        """Return the address of a window's first byte. ``num_read`` bytes were read (below 0: the error's code)."""
        w = self._job.windows
        file, low, high = w.file[i], w.low[i], w.high[i]
        begin = _aligned(low, high)[0] if file in self._job.direct_files else low
        if num_read < 0:
            raise OSError(-num_read, os.strerror(-num_read))
        if num_read < high - begin:  # read the rest, or get the error that there is none
            num_read = max(num_read, low - begin)
            rest = [slot.memory[num_read : high - begin]]
            self._job.store.readinto(self._job.files[file], begin + num_read, rest)
        return slot.address + low - begin


def _aligned(low: int, high: int) -> tuple[int, int]:
    """Return the range of direct I/O that contains another."""
    return low // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT, -(-high // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
