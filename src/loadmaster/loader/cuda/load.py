"""Loading onto GPUs: files → page-locked slots → devices, for one rank or for several ranks of one host at once.

Bytes that several ranks need are read once, sent to one device, and copied from there to the others. Dequantisation and casts
run on the device. See `loadmaster.loader.cuda.transfer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Literal, get_args, overload

import torch

from loadmaster.arguments import expect, expect_int, shown
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.errors import ArgumentError, LoadError
from loadmaster.host_memory import no_memory_is_a_load_error
from loadmaster.loader.completeness import Completeness
from loadmaster.loader.cuda.job import IO, make_job
from loadmaster.loader.cuda.ring import SLOT_BYTES, SLOTS_PER_READER, Ring, device_readers
from loadmaster.loader.cuda.transfer import Transfer
from loadmaster.loader.host import load_on_host
from loadmaster.loader.memory import DeviceArena
from loadmaster.loader.options import check_options, torch_device
from loadmaster.loader.readers import check_files
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.plan import Plan, ProvenPlan, RankPlan, admit


def num_devices() -> int:
    """Return how many GPUs torch finds on this host."""
    return torch.cuda.device_count()


def slot_bytes(readers: int, staging_bytes: int | None) -> int:
    """Return the size of a slot under a budget for all of them."""
    if staging_bytes is None:
        return SLOT_BYTES
    return max(min(SLOT_BYTES, staging_bytes // (readers * SLOTS_PER_READER)) // 2**16, 1) * 2**16


def make_ring(
    num_readers: int | None = None, staging_bytes: int | None = None, device: torch.device | None = None
) -> Ring:
    """Begin to allocate page-locked memory ahead of `load_ranks`, which otherwise does it.

    ``device`` is one of the GPUs that are loaded onto; None: the first.
    """
    readers = num_readers or device_readers()
    return Ring(readers * SLOTS_PER_READER, slot_bytes(readers, staging_bytes), device)


@overload
def load_ranks(
    plan: ProvenPlan,
    devices: Mapping[int, str | torch.device],
    *,
    tensors: Mapping[int, Mapping[str, torch.Tensor]] | None = ...,
    store: Store | None = ...,
    ring: Ring | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
    io: IO = ...,
) -> dict[int, LoadedRank]: ...


@overload
def load_ranks(
    plan: Plan,
    devices: Mapping[int, str | torch.device],
    *,
    tensors: Mapping[int, Mapping[str, torch.Tensor]] | None = ...,
    store: Store | None = ...,
    ring: Ring | None = ...,
    on_progress: Callable[[int], None] | None = ...,
    num_readers: int | None = ...,
    staging_bytes: int | None = ...,
    io: IO = ...,
    allow_unproven: Literal[True],
) -> dict[int, LoadedRank]: ...


@no_memory_is_a_load_error()
def load_ranks(
    plan: Plan,
    devices: Mapping[int, str | torch.device],
    *,
    tensors: Mapping[int, Mapping[str, torch.Tensor]] | None = None,
    store: Store | None = None,
    ring: Ring | None = None,
    on_progress: Callable[[int], None] | None = None,
    num_readers: int | None = None,
    staging_bytes: int | None = None,
    io: IO = "auto",
    allow_unproven: bool = False,
) -> dict[int, LoadedRank]:
    """Load ranks onto GPUs of this host: rank → device, each its own or several on one. Tables go where the plan has them.

    ``tensors`` gives existing memory for a rank's parameters, by name: only these parameters of that rank are loaded.
    ``ring`` is page-locked memory that `make_ring` allocated; without it, it is allocated and freed here.
    ``on_progress`` is called, from any reader, with bytes of the plan that are done; the calls sum to the
    ``needed_bytes`` of all ranks. ``num_readers`` defaults to 12 a device, at most the cores but two, each with two slots of 4
    MiB; ``staging_bytes`` makes the slots smaller where that is less. ``io``: files are read through the page cache,
    with direct I/O, or (``auto``) with direct I/O where the cache does not hold them. ``plan`` and ``allow_unproven`` are as for
    `load_rank`.

    Raises:
        PlanError: the plan was not proven; carries its findings. Nothing was read.
        ArgumentError: the layout has no such rank, or an argument has the wrong type.
        LoadError: a device has too little memory; a file changed, is shorter than planned, or could not be read; a copy
            failed. Names file, tensor and rank. No rank is returned then.
    """
    begin = time.perf_counter()
    plan = admit(plan, allow_unproven=allow_unproven)
    check_options(num_readers, staging_bytes, on_progress, store)
    if io not in get_args(IO):
        raise ArgumentError(f"io is {shown(io)}, expected one of {', '.join(get_args(IO))}")
    rank_plans, given = _rank_plans(plan, devices, tensors)
    targets = {rank: _device(device) for rank, device in devices.items()}
    readers = num_readers or device_readers(len(set(targets.values())))
    with ExitStack() as stack:
        source = store or stack.enter_context(closing(LocalStore(plan.model_path)))
        if ring is None:
            ring = stack.enter_context(closing(make_ring(readers, staging_bytes, next(iter(targets.values()), None))))
        readers = min(readers, ring.num_slots // SLOTS_PER_READER)
        on_devices = {rank: p.in_memory(host=False) for rank, p in rank_plans.items()}
        done = _transfer(plan, on_devices, targets, given, source, ring, readers, on_progress, io)
        end = time.perf_counter()
        loaded = {rank: _loaded(rank, done, targets[rank], begin, end) for rank in rank_plans}
        for rank, rank_plan in rank_plans.items():
            if rank_plan.host_bytes:
                tables = load_on_host(
                    plan,
                    rank_plan.in_memory(host=True),
                    given.get(rank),
                    source,
                    on_progress,
                    num_readers,
                    staging_bytes,
                )
                loaded[rank] = _with_tables(loaded[rank], tables, rank_plan)
    return loaded


def _with_tables(loaded: LoadedRank, tables: LoadedRank, rank_plan: RankPlan) -> LoadedRank:
    """Return a rank with its tables, which are in the memory of the host."""
    report, more = loaded.report, tables.report
    both = {name: getattr(report, name) + getattr(more, name) for name in _ADDED}
    seconds = report.seconds + more.seconds
    phases = {**report.phases, "tables": more.seconds}
    tensors = loaded.tensors | tables.tensors
    return LoadedRank(
        rank_plan.specs,
        {s.name: tensors[s.name] for s in rank_plan.specs},
        replace(report, **both, seconds=seconds, phases=phases),
    )


_ADDED = ("needed_bytes", "fetched_bytes", "resident_bytes", "direct_bytes", "staged_bytes", "num_reads")


def _rank_plans(
    plan: Plan,
    devices: Mapping[int, str | torch.device],
    tensors: Mapping[int, Mapping[str, torch.Tensor]] | None,
) -> tuple[dict[int, RankPlan], Mapping[int, Mapping[str, torch.Tensor]]]:
    """Return what each rank loads, and the tensors that are given for it."""
    for rank in expect("devices", devices, Mapping, "a mapping of ranks to devices"):
        expect_int("rank", rank, 0, plan.num_ranks - 1)
    given = expect("tensors", tensors or {}, Mapping, "a mapping of ranks to tensors by name")
    for of_rank in given.values():
        expect("tensors", of_rank, Mapping, "a mapping of ranks to tensors by name")
    return {r: plan.rank(r).only(given[r].keys()) if r in given else plan.rank(r) for r in devices}, given


@dataclass(frozen=True)
class _Done:
    """A transfer that is complete, its ranks' memory, and when each phase ended."""

    transfer: Transfer
    arenas: Mapping[int, DeviceArena]
    allocated: float
    prepared: float
    pinned: float


def _transfer(
    plan: Plan,
    rank_plans: Mapping[int, RankPlan],
    targets: Mapping[int, torch.device],
    given: Mapping[int, Mapping[str, torch.Tensor]],
    store: Store,
    ring: Ring,
    readers: int,
    on_progress: Callable[[int], None] | None,
    io: IO,
) -> _Done:
    """Allocate each rank's memory and fill it; check the files before and after, and that nothing is missing."""
    arenas = {rank: DeviceArena(p.specs, targets[rank], rank, given.get(rank)) for rank, p in rank_plans.items()}
    for rank in given:
        torch.cuda.synchronize(targets[rank])  # the owner of the memory may be writing to it
    allocated = time.perf_counter()
    for rank, rank_plan in rank_plans.items():
        check_files(plan, rank_plan, store, rank)
    complete = Completeness(rank_plans, on_progress)
    transfer = Transfer(make_job(plan, rank_plans, targets, arenas, store, ring, readers, complete.advance, io))
    prepared = time.perf_counter()
    ring.ready()
    pinned = time.perf_counter()
    try:
        transfer.fill()
        transfer.run()
    finally:
        for device in set(targets.values()):
            torch.cuda.synchronize(device)
        transfer.close()
    for rank, rank_plan in rank_plans.items():
        check_files(plan, rank_plan, store, rank)
    complete.check({rank: arena.tensors for rank, arena in arenas.items()})
    return _Done(transfer, arenas, allocated, prepared, pinned)


def _loaded(rank: int, done: _Done, device: torch.device, begin: float, end: float) -> LoadedRank:
    job = done.transfer.job
    rank_plan = job.rank_plans[rank]
    phases = {
        "allocate": done.allocated - begin,
        "prepare": done.prepared - done.allocated,
        "pin": done.pinned - done.prepared,
        "load": end - done.pinned,
        **done.transfer.seconds(),
    }
    report = LoadReport(
        rank=rank,
        needed_bytes=rank_plan.needed_bytes,
        fetched_bytes=rank_plan.fetched_bytes,
        resident_bytes=rank_plan.num_bytes,
        direct_bytes=job.direct_bytes[rank],
        staged_bytes=rank_plan.needed_bytes,
        staging_bytes=job.ring.num_bytes,
        num_readers=job.num_readers,
        num_reads=rank_plan.num_reads,
        seconds=end - begin,
        device=str(device),
        io=job.io_choice,
        phases=phases,
        peak_device_bytes=torch.cuda.max_memory_allocated(device),
    )
    return LoadedRank(rank_plan.specs, done.arenas[rank].tensors, report)


def _device(device: str | torch.device) -> torch.device:
    gpu = torch_device(device)
    if gpu.type != "cuda":
        raise LoadError(f"{gpu} is not a GPU that can be loaded onto", hint="use cuda, or cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        raise LoadError(f"{gpu}: torch finds no GPU", hint="nvidia-smi shows what the driver sees; or use the CPU")
    gpu = torch.device("cuda", torch.cuda.current_device() if gpu.index is None else gpu.index)
    if gpu.index >= torch.cuda.device_count():
        raise LoadError(f"{gpu}: torch finds {torch.cuda.device_count()} GPU(s)")
    return gpu
