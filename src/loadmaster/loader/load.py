"""Loading one rank: a plan's reads, carried out by several readers into the rank's parameters.

Bytes that need no operation are read straight to their final address. Strided cuts and operands of operations pass through
staging, a fixed budget divided among the readers; staged memory is never returned. Reads go in file order. The files are
checked against the plan before the first byte and after the last. Nothing is returned unless every byte was loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Literal, overload

import numpy as np
import torch

from loadmaster.architectures.algebra import Expression, Region
from loadmaster.arguments import expect, expect_int
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.errors import LoadError
from loadmaster.host_memory import no_memory_is_a_load_error
from loadmaster.loader.completeness import Completeness
from loadmaster.loader.cuda.load import load_ranks
from loadmaster.loader.memory import Arena
from loadmaster.loader.operations import destination, evaluate, fill, operands_of, slabs, view_of_span
from loadmaster.loader.options import check_options, torch_device
from loadmaster.loader.readers import Task, check_files, default_readers, run_tasks
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.plan import Plan, ProvenPlan, RankPlan, admit
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.proof import STAGING_BYTES

CHUNK_BYTES = 8 * 2**20
"""A task's size: large enough that Python's share is small, small enough to divide well among readers."""

MAX_BUFFERS = 256
"""Destinations of one scattered read."""


@overload
def load_rank(
    plan: ProvenPlan,
    rank: int,
    *,
    device: str | torch.device = ...,
    tensors: Mapping[str, torch.Tensor] | None = ...,
    store: Store | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
) -> LoadedRank: ...


@overload
def load_rank(
    plan: Plan,
    rank: int,
    *,
    device: str | torch.device = ...,
    tensors: Mapping[str, torch.Tensor] | None = ...,
    store: Store | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
    allow_unproven: Literal[True],
) -> LoadedRank: ...


@no_memory_is_a_load_error()
def load_rank(
    plan: Plan,
    rank: int,
    *,
    device: str | torch.device = "cpu",
    tensors: Mapping[str, torch.Tensor] | None = None,
    store: Store | None = None,
    on_progress: Callable[[int], None] | None = None,
    num_readers: int | None = None,
    staging_bytes: int | None = None,
    allow_unproven: bool = False,
) -> LoadedRank:
    """Load one rank's parameters into host memory, or onto a GPU (see `load_ranks`).

    ``tensors`` gives existing memory to load into, on ``device``: only the parameters that it names are loaded.
    ``on_progress`` is called, from any reader, with bytes of the plan that are done; the calls sum to the rank's
    ``needed_bytes``. ``num_readers`` defaults to twice the cores, at most 16; ``staging_bytes`` to 256 MiB.

    ``plan`` is a `ProvenPlan`. ``allow_unproven`` loads what any other plan describes, on purpose: parameters that its
    findings name may be missing.

    Raises:
        PlanError: the plan was not proven; carries its findings. Nothing was read.
        ArgumentError: the layout has no such rank, or an argument has the wrong type.
        LoadError: a file changed, is shorter than planned, or could not be read; names file, tensor and rank.
            Or the host has too little memory, which is checked before anything is read.
    """
    plan = admit(plan, allow_unproven=allow_unproven)
    expect_int("rank", rank, 0, plan.num_ranks - 1)
    check_options(num_readers, staging_bytes, on_progress, store)
    if torch_device(device).type != "cpu":
        loaded = load_ranks(
            plan,
            {rank: device},
            tensors=None if tensors is None else {rank: tensors},
            store=store,
            on_progress=on_progress,
            num_readers=num_readers,
            staging_bytes=staging_bytes,
            allow_unproven=True,  # it was admitted above
        )
        return loaded[rank]
    if tensors is not None:
        expect("tensors", tensors, Mapping, "a mapping of names to tensors")
    with ExitStack() as stack:
        source = store or stack.enter_context(closing(LocalStore(plan.model_path)))
        return _load_on_host(plan, rank, tensors, source, on_progress, num_readers, staging_bytes)


def _load_on_host(
    plan: Plan,
    rank: int,
    tensors: Mapping[str, torch.Tensor] | None,
    store: Store,
    on_progress: Callable[[int], None] | None,
    num_readers: int | None,
    staging_bytes: int | None,
) -> LoadedRank:
    begin = time.perf_counter()
    rank_plan = plan.rank(rank) if tensors is None else plan.rank(rank).only(tensors.keys())
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
        resident_bytes=rank_plan.resident_bytes,
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
            destination(self.arena.tensors, self.derived, group, place, region).copy_(evaluate(part, views))
            self.on_progress(counted)

        return read
