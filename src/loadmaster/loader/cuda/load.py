"""Loading onto GPUs: files → page-locked slots → devices, for one rank or for several of one host at once.

What several ranks need is read once, sent to one device, and from there to the others. What must be computed is computed on
the device, from operands that went there the same way. How it is done is in `loadmaster.loader.cuda.transfer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal, get_args, overload

import torch

from loadmaster.arguments import expect, expect_int, shown
from loadmaster.checkpoint import LocalStore, Store
from loadmaster.errors import ArgumentError, LoadError
from loadmaster.loader.completeness import Completeness
from loadmaster.loader.cuda.ring import SLOT_BYTES, SLOTS_PER_READER, Ring, device_readers
from loadmaster.loader.cuda.transfer import IO, Transfer
from loadmaster.loader.memory import DeviceArena
from loadmaster.loader.options import check_options, torch_device
from loadmaster.loader.readers import check_files
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.plan import Plan, ProvenPlan, admit


def num_devices() -> int:
    """Return how many GPUs torch finds on this host."""
    return torch.cuda.device_count()


def slot_bytes(readers: int, staging_bytes: int | None) -> int:
    """Return the size of a slot under a budget for all of them."""
    if staging_bytes is None:
        return SLOT_BYTES
    return max(min(SLOT_BYTES, staging_bytes // (readers * SLOTS_PER_READER)) // 2**16, 1) * 2**16


def make_ring(num_readers: int | None = None, staging_bytes: int | None = None) -> Ring:
    """Begin to make the page-locked memory that `load_ranks` makes for itself, ahead of it."""
    readers = num_readers or device_readers()
    return Ring(readers * SLOTS_PER_READER, slot_bytes(readers, staging_bytes))


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
    """Load ranks onto GPUs of this host: rank → device, each its own or several on one.

    ``tensors`` is the memory of a rank's parameters by name, where it is there already: those are loaded, and no others
    of that rank. ``ring`` is page-locked memory made before; without it, it is made and given back here.
    ``on_progress`` is called, from any reader, with bytes of the plan that are done; the calls sum to the
    ``needed_bytes`` of all ranks. ``num_readers`` defaults to the cores but two, at most 32, each with two slots of 4
    MiB; ``staging_bytes`` makes the slots smaller where that is less. ``io``: files are read through the page cache,
    past it, or (``auto``) past it where the cache does not hold them. ``plan`` and ``allow_unproven`` are as for
    `load_rank`.

    Raises:
        PlanError: the plan was not proven; carries its findings. Nothing was read.
        ArgumentError: the layout has no such rank, or an argument is not of its kind.
        LoadError: a device has too little memory; a file changed, is shorter than planned, or could not be read; a copy
            failed. Names file, tensor and rank. Nothing of any rank is handed out then.
    """
    begin = time.perf_counter()
    plan = admit(plan, allow_unproven=allow_unproven)
    for rank in expect("devices", devices, Mapping, "a mapping of ranks to devices"):
        expect_int("rank", rank, 0, plan.num_ranks - 1)
    check_options(num_readers, staging_bytes, on_progress, store)
    if io not in get_args(IO):
        raise ArgumentError(f"io is {shown(io)}, expected one of {', '.join(get_args(IO))}")
    readers = num_readers or device_readers()
    given = expect("tensors", tensors or {}, Mapping, "a mapping of ranks to tensors by name")
    for own_tensors in given.values():
        expect("tensors", own_tensors, Mapping, "a mapping of ranks to tensors by name")
    derived = {r: plan.rank(r).only(given[r].keys()) if r in given else plan.rank(r) for r in devices}
    targets = {rank: _device(device) for rank, device in devices.items()}
    own = LocalStore(plan.model_path) if store is None else None
    source = store or own
    assert source is not None
    own_ring: Ring | None = None
    if ring is None:
        ring = own_ring = make_ring(readers, staging_bytes)
    readers = min(readers, ring.num_slots // SLOTS_PER_READER)
    try:
        arenas = {rank: DeviceArena(d.specs, targets[rank], rank, given.get(rank)) for rank, d in derived.items()}
        for rank in given:
            torch.cuda.synchronize(targets[rank])  # whoever owns the memory may be writing to it
        allocated = time.perf_counter()
        for rank, d in derived.items():
            check_files(plan, d, source, rank)
        complete = Completeness(derived, on_progress)
        job = Transfer(plan, derived, targets, arenas, source, ring, readers, complete.advance, io)
        prepared = time.perf_counter()
        ring.ready()
        pinned = time.perf_counter()
        try:
            job.fill()
            job.run()
        finally:
            for device in set(targets.values()):
                torch.cuda.synchronize(device)
            job.close()
        for rank, d in derived.items():
            check_files(plan, d, source, rank)
        complete.check({rank: arena.tensors for rank, arena in arenas.items()})
    finally:
        if own_ring is not None:
            own_ring.close()
        if own is not None:
            own.close()
    end = time.perf_counter()
    phases = {
        "allocate": allocated - begin,
        "prepare": prepared - allocated,
        "pin": pinned - prepared,
        "load": end - pinned,
        **job.seconds(),
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
                peak_device_bytes=torch.cuda.max_memory_allocated(targets[rank]),
            ),
        )
        for rank, d in derived.items()
    }


def _device(device: str | torch.device) -> torch.device:
    made = torch_device(device)
    if made.type != "cuda":
        raise LoadError(f"{made} is no GPU that this loads onto", hint="use cuda, or cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        raise LoadError(f"{made}: torch finds no GPU", hint="nvidia-smi shows what the driver sees; or use the CPU")
    made = torch.device("cuda", torch.cuda.current_device() if made.index is None else made.index)
    if made.index >= torch.cuda.device_count():
        raise LoadError(f"{made}: torch finds {torch.cuda.device_count()} GPU(s)")
    return made
