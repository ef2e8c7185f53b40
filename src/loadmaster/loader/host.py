"""Loading into host memory: a rank's reads, carried out by several readers into its parameters.

Bytes that need no operation are read straight to their final address. Strided cuts and operands of operations pass through
staging, a fixed budget divided among the readers; staged memory is never returned. Reads go in file order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from loadmaster.architectures.algebra import Expression, Region
from loadmaster.checkpoint import Store
from loadmaster.errors import LoadError
from loadmaster.loader.completeness import Completeness
from loadmaster.loader.memory import Arena
from loadmaster.loader.operations import destination, evaluate, fill, naming, operands_of, slabs, view_of_span
from loadmaster.loader.readers import Task, check_files, default_readers, run_tasks
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.plan import Plan, RankPlan
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.proof import STAGING_BYTES

CHUNK_BYTES = 8 * 2**20
"""A task's size: large enough that Python's share is small, small enough to divide well among readers."""

MAX_BUFFERS = 256
"""Destinations of one scattered read."""


def load_on_host(
    plan: Plan,
    rank_plan: RankPlan,
    tensors: Mapping[str, torch.Tensor] | None,
    store: Store,
    on_progress: Callable[[int], None] | None,
    num_readers: int | None,
    staging_bytes: int | None,
) -> LoadedRank:
    """Load what ``rank_plan`` describes into host memory, or into the ``tensors`` given; see `load_rank`.

    Raises:
        LoadError: as `load_rank` raises it.
    """
    begin, rank = time.perf_counter(), rank_plan.rank
    readers = num_readers or default_readers()
    budget = staging_bytes or STAGING_BYTES
    check_files(plan, rank_plan, store, rank)
    arena = Arena(rank_plan.specs, tensors, rank=rank, staging_bytes=rank_plan.staging_bytes(budget))
    complete = Completeness({rank: rank_plan}, on_progress)
    job = _Job(plan, rank_plan, store, arena, complete.advance, budget // readers)
    run_tasks(job.tasks(), readers)
    check_files(plan, rank_plan, store, rank)
    complete.check({rank: arena.tensors})
    report = LoadReport(
        rank=rank,
        needed_bytes=rank_plan.needed_bytes,
        fetched_bytes=rank_plan.fetched_bytes,
        resident_bytes=rank_plan.num_bytes,
        direct_bytes=job.direct_bytes,
        staged_bytes=rank_plan.needed_bytes - job.direct_bytes,
        staging_bytes=rank_plan.staging_bytes(budget),
        num_readers=readers,
        num_reads=rank_plan.num_reads,
        seconds=time.perf_counter() - begin,
    )
    return LoadedRank(rank_plan.specs, arena.tensors, report)


class _Job:
    """One rank's reads, as tasks for the readers."""

    def __init__(
        self,
        plan: Plan,
        derived: RankPlan,
        store: Store,
        arena: Arena,
        on_progress: Callable[[int], None],
        slot_bytes: int,
    ) -> None:
        self.plan = plan
        self.derived = derived
        self.store = store
        self.arena = arena
        self.on_progress = on_progress
        self.slot_bytes = max(slot_bytes, 2**16)
        self.direct_bytes = 0

    def tasks(self) -> Iterator[Task]:
        """Yield tasks in file order; a task takes a reader's local storage."""
        direct, staged = [], []
        for group in self.derived.groups:
            if group.is_fill:
                fill(self.arena.tensors, self.derived, group)
                continue
            target = self._direct_target(group)
            if target is None:
                staged.append(group)
            else:
                direct.append((group, target))
        tasks = [*self._direct_tasks(direct), *self._staged_tasks(staged)]
        tasks.sort(key=lambda t: t[0])
        for _, task in tasks:
            yield task

    def _direct_target(self, group: MoveGroup) -> np.ndarray | None:
        """Return where each place of a group begins in its parameter, in bytes; None if bytes cannot go there directly."""
        if not group.is_copy or group.runs[0].counts:
            return None
        to, begins = self.derived.destination(group)
        return None if to.counts else begins

    def _direct_tasks(self, groups: Sequence[tuple[MoveGroup, np.ndarray]]) -> Iterator[tuple[tuple[int, int], Task]]:
        """Join neighbouring reads into scattered ones of about a chunk, and divide large ones."""
        if not groups:
            return
        table = self.plan.checkpoint.table
        file = np.concatenate([table.file[b.tensors[:, 0]] for b, _ in groups])
        start = np.concatenate([b.starts(table, 0) for b, _ in groups])
        length = np.concatenate([np.full(len(b.params), b.runs[0].run) for b, _ in groups])
        param = np.concatenate([b.params for b, _ in groups])
        offset = np.concatenate([to for _, to in groups])
        tensor = np.concatenate([b.tensors[:, 0] for b, _ in groups])
        order = np.lexsort((start, file))
        self.direct_bytes = int(length.sum())
        buffers = [self.arena.buffers.get(s.name) for s in self.derived.specs]

        group: list[tuple[int, int, int, int]] = []  # param, offset, length, tensor
        group_file = group_start = group_end = -1

        def flush() -> Iterator[tuple[tuple[int, int], Task]]:
            if group:
                yield (group_file, group_start), self._read_direct(group_file, group_start, list(group), buffers)

        for f, s, n, p, o, t in zip(
            *(column[order].tolist() for column in (file, start, length, param, offset, tensor)), strict=True
        ):
            done = 0
            while done < n:
                fits = f == group_file and s + done == group_end and len(group) < MAX_BUFFERS
                room = CHUNK_BYTES - (group_end - group_start) if fits else 0
                if room <= 0:
                    yield from flush()
                    group.clear()
                    group_file, group_start, group_end = f, s + done, s + done
                    room = CHUNK_BYTES
                take = min(room, n - done)
                group.append((p, o + done, take, t))
                group_end += take
                done += take
        yield from flush()

    def _read_direct(
        self, file: int, start: int, parts: list[tuple[int, int, int, int]], buffers: list[memoryview | None]
    ) -> Task:
        name = self.plan.checkpoint.files[file].name

        def read(_: Any) -> None:
            into = []
            for param, offset, length, _tensor in parts:
                buffer = buffers[param]
                assert buffer is not None, "an alias is never written"
                into.append(buffer[offset : offset + length])
            self._read(name, start, into, parts[0][3], parts[-1][3])
            self.on_progress(sum(p[2] for p in parts))

        return read

    def _read(self, name: str, start: int, into: list[memoryview], first: int, last: int) -> None:
        try:
            self.store.readinto(name, start, into)
        except (LoadError, OSError) as error:
            names = self.plan.checkpoint.table.names
            what = names[first] if first == last else f"{names[first]} to {names[last]}"
            raise LoadError(
                f"rank {self.derived.rank}: {name}: reading {what} failed: {error}",
                hint="no part of the model was loaded",
            ) from error

    def _staged_tasks(self, groups: Sequence[MoveGroup]) -> Iterator[tuple[tuple[int, int], Task]]:
        table = self.plan.checkpoint.table
        for group in groups:
            parts = list(slabs(group.piece.source, self.slot_bytes))
            for place in range(len(group.params)):
                first = int(group.tensors[place, 0])
                key = (int(table.file[first]), int(table.start[first]))
                for i, (region, part) in enumerate(parts):
                    counted = group.needed_bytes // len(group.params) if i == len(parts) - 1 else 0
                    yield key, self._read_staged(group, place, region, part, counted)

    def _read_staged(self, group: MoveGroup, place: int, region: Region, part: Expression, counted: int) -> Task:
        def read(local: Any) -> None:
            if not hasattr(local, "slot"):
                local.slot = torch.empty(self.slot_bytes, dtype=torch.uint8)
            slot = local.slot
            raw = memoryview(slot.numpy())
            operands = operands_of(part, group, place, self.plan.checkpoint.table)
            assert operands[-1].end <= self.slot_bytes
            for o in operands:
                name = self.plan.checkpoint.files[o.file].name
                self._read(name, o.start, [raw[o.at : o.at + o.span]], o.tensor, o.tensor)
            views = (view_of_span(o.view, slot[o.at : o.at + o.span]) for o in operands)
            target = destination(self.arena.tensors, self.derived, group, place, region)
            with naming(self.derived.rank, self.plan.checkpoint.table.names[operands[0].tensor]):
                target.copy_(evaluate(part, views))
            self.on_progress(counted)

        return read
