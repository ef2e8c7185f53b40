"""Carries a transfer out: windows of files through slots to devices, and operations on the devices.

One thread submits reads of windows to the C library's threads, and issues the copies of each window that was read
(`loadmaster.loader.cuda.conductor`). Row-parallel cuts are copied as boxes, so that the processor never gathers rows. Where
the C library or the store does not support such reads, readers read windows through the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
import torch

from loadmaster.architectures.algebra import Expression, Region
from loadmaster.errors import LoadError
from loadmaster.kernels import fp8_dequantise
from loadmaster.loader.cuda.conductor import Conductor
from loadmaster.loader.cuda.driver import Driver
from loadmaster.loader.cuda.job import TransferJob
from loadmaster.loader.cuda.lane import PHASES, Lane
from loadmaster.loader.cuda.ring import SLOTS_PER_READER
from loadmaster.loader.cuda.sender import Sender
from loadmaster.loader.operations import destination, fill, operands_of, slabs, view_of_span, write
from loadmaster.loader.readers import Task, run_tasks
from loadmaster.plan.moves import MoveGroup

KERNELS_FROM: Final = 2**30
"""Bytes to be computed from which kernels are worth a second: Triton compiles them when they are first used."""


class Transfer:
    """One job under way: `fill`, then `run`; `close` when no copy is under way any more."""

    def __init__(self, job: TransferJob) -> None:
        self.job = job
        self._driver = Driver()
        self._driver.connect(job.devices)
        self._sender = Sender(job.windows, self._driver)
        self._with_kernels = job.computed_bytes >= KERNELS_FROM and fp8_dequantise.is_available()
        self._numbers = iter(range(job.ring.num_slots))
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._conductor = Conductor(job, self._sender) if job.is_conducted else None

    def fill(self) -> None:
        """Write what is constant, and wait for that and for memory that was freed: other streams write from here on."""
        for rank, rank_plan in self.job.rank_plans.items():
            for group in rank_plan.groups:
                if group.is_fill:
                    fill(self.job.arenas[rank].tensors, rank_plan, group)
        for device in self.job.devices:
            torch.cuda.synchronize(device)

    def run(self) -> None:
        """Read, send on and compute everything: this thread conducts windows, readers compute at the same time.

        Raises:
            LoadError: the first failure, which ends all of it.
        """
        job, conductor = self.job, self._conductor
        if conductor is None or not len(job.windows):
            run_tasks(chain(self._window_tasks(), self._operations()), job.num_readers)
        elif not (num_computing := self._num_computing()):
            conductor.run(self._new_lane(range(job.ring.num_slots)), [])
            run_tasks(self._operations(), job.num_readers)
        else:
            failures: list[BaseException] = []
            with ThreadPoolExecutor(1) as pool:
                operations = pool.submit(run_tasks, self._operations(), num_computing, failures)
                try:
                    slots = range(num_computing * SLOTS_PER_READER, job.ring.num_slots)
                    conductor.run(self._new_lane(slots), failures)
                except BaseException as error:
                    failures.append(error)
                    raise
                operations.result()

    def seconds(self) -> dict[str, float]:
        """Return what all threads together spent their time on."""
        return {name: sum(getattr(lane, name) for lane in self._lanes) for name in PHASES}

    def close(self) -> None:
        """Give back what the threads used. No copy may be under way."""
        for lane in self._lanes:
            lane.close()

    def _num_computing(self) -> int:
        """Return how many readers compute while windows are sent: their share of the bytes, and all but one at most."""
        job = self.job
        share = round(job.num_readers * job.computed_bytes / (job.computed_bytes + sum(job.windows.needed)))
        return min(max(share, 1), job.num_readers - 1) if job.computed_bytes else 0

    def _window_tasks(self) -> Iterator[Task]:
        order = iter(range(len(self.job.windows)))  # shared: each reader takes the next one
        for _ in range(self.job.num_readers):
            yield partial(self._read_windows, order)

    def _operations(self) -> Iterator[Task]:
        for rank, groups in self.job.operations.items():
            for group in groups:
                parts = list(slabs(group.piece.source, self.job.ring.slot_bytes))
                for place in range(len(group.params)):
                    for i, (region, part) in enumerate(parts):
                        counted = group.needed_bytes // len(group.params) if i == len(parts) - 1 else 0
                        yield partial(self._operation, rank, group, place, region, part, counted)

    def _new_lane(self, slots: range) -> Lane:
        job = self.job
        lane = Lane(self._driver, job.devices, [job.ring.slot(n) for n in slots], self._sender.most)
        self._lanes.append(lane)
        return lane

    def _lane(self, local: Any) -> Lane:
        """Return the lane of a reader, made at its first use."""
        if not hasattr(local, "lane"):
            with self._lock:
                first = next(self._numbers)
                for _ in range(SLOTS_PER_READER - 1):
                    next(self._numbers)
            local.lane = self._new_lane(range(first, first + SLOTS_PER_READER))
        lane: Lane = local.lane
        return lane

    def _read_windows(self, order: Iterator[int], local: Any) -> None:
        """Read windows through the store, until no reader finds another."""
        lane, failures, job = self._lane(local), local.failures, self.job
        w = job.windows
        for i in order:
            if failures:
                return
            slot = lane.take()
            begin = time.perf_counter()
            try:
                job.store.readinto(job.files[w.file[i]], w.low[i], [slot.memory[: w.high[i] - w.low[i]]])
                middle = time.perf_counter()
                self._sender.send(lane, slot, i, slot.address)
            except (LoadError, OSError, RuntimeError) as error:
                raise job.window_error(i, error) from error
            lane.read += middle - begin
            lane.issue += time.perf_counter() - middle
            job.on_progress(w.needed[i])

    def _operation(
        self, rank: int, group: MoveGroup, place: int, region: Region, part: Expression, counted: int, local: Any
    ) -> None:
        """Bring the operands of a part to the device, and compute it there."""
        job = self.job
        lane, device = self._lane(local), job.device_of[rank]
        slot = lane.take()
        address, memory = slot.address, slot.memory
        stream, scratch = lane.torch_streams[device], lane.scratch(device, job.ring.slot_bytes)
        operands = operands_of(part, group, place, job.table)
        reading = operands[0]
        begin = time.perf_counter()
        try:
            for o in operands:
                reading = o
                job.store.readinto(job.files[o.file], o.start, [memory[o.at : o.at + o.span]])
            middle = time.perf_counter()
            self._driver.to_device(scratch.data_ptr(), address, operands[-1].end, slot.streams[device])
            slot.copied(device)
            with torch.cuda.stream(stream):
                target = destination(job.arenas[rank].tensors, job.rank_plans[rank], group, place, region)
                views = (view_of_span(o.view, scratch[o.at : o.at + o.span]) for o in operands)
                write(target, part, views, with_kernels=self._with_kernels)
        except (LoadError, OSError, RuntimeError, ValueError) as error:
            tensors = np.array([o.tensor for o in operands[: operands.index(reading) + 1]])
            raise job.error(reading.file, tensors, np.array([device]), error) from error
        lane.read += middle - begin
        lane.operate += time.perf_counter() - middle
        job.on_progress(counted)
