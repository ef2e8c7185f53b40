"""Loading many ranks of one host in turns: one after another in host memory, or as many at a time as there are GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadmaster.host_memory import require_memory
from loadmaster.loader.checksum import Manifest, checksums
from loadmaster.loader.cuda.job import IO
from loadmaster.loader.cuda.load import load_ranks, make_ring, num_devices
from loadmaster.loader.cuda.ring import Ring, device_readers
from loadmaster.loader.load import load_rank
from loadmaster.loader.memory import MORE_RANKS
from loadmaster.loader.report import LoadedRank
from loadmaster.plan import Plan, Proof, ProvenPlan
from loadmaster.plan.proof import STAGING_BYTES


@contextmanager
def ring_ahead(num_readers: int | None, staging_bytes: int | None, num_ranks: int) -> Iterator[Future[Ring]]:
    """Page-lock memory in the background, while the headers are read and the plan is proven; free it at the end.

    It suits as many GPUs at a time as ``num_ranks`` take.
    """

    def make() -> Ring:
        return make_ring(num_readers or device_readers(min(num_ranks, num_devices())), staging_bytes)

    with ThreadPoolExecutor(1) as pool:
        ring = pool.submit(make)
        try:
            yield ring
        finally:
            if ring.exception() is None:
                ring.result().close()


def require_room(proof: Proof, ranks: Sequence[int], staging_bytes: int | None) -> None:
    """Check that the largest of some ranks fits the host's memory, before the first one is read.

    Raises:
        LoadError: it does not.
    """
    largest = max((proof.ranks[r] for r in ranks), key=lambda r: r.resident_bytes + r.host_bytes)
    staging = proof.plan.rank(largest.rank).staging_bytes(staging_bytes or STAGING_BYTES)
    what = f"rank {largest.rank}: its parameters and staging take"
    require_memory(largest.resident_bytes + largest.host_bytes + staging, what, hint=MORE_RANKS)


def load_in_turns(
    plan: ProvenPlan,
    ranks: Sequence[int],
    ring: Future[Ring] | None,
    *,
    io: IO = "auto",
    on_progress: Callable[[int], None] | None = None,
    num_readers: int | None = None,
    staging_bytes: int | None = None,
) -> Iterator[dict[int, LoadedRank]]:
    """Yield ranks as they are loaded: those that are in memory at the same time, in one mapping.

    With a ``ring``, they are loaded onto this host's GPUs, as many at a time as there are. Drop a mapping before asking for
    the next: otherwise both are in memory.
    """
    at_once = 1 if ring is None else max(num_devices(), 1)
    for first in range(0, len(ranks), at_once):
        group = ranks[first : first + at_once]
        if ring is None:
            loaded = {
                rank: load_rank(
                    plan, rank, on_progress=on_progress, num_readers=num_readers, staging_bytes=staging_bytes
                )
                for rank in group
            }
        else:
            loaded = load_ranks(
                plan,
                {rank: f"cuda:{i}" for i, rank in enumerate(group)},
                ring=ring.result(),
                io=io,
                on_progress=on_progress,
                num_readers=num_readers,
                staging_bytes=staging_bytes,
            )
        yield loaded
        del loaded


def compare_with_manifest(plan: Plan, loaded: LoadedRank, path: Path | None) -> dict[str, Any]:
    """Compare a rank's checksums with the manifest, as JSON values; the first load of a rank writes it.

    Raises:
        LoadError: a parameter has another checksum.
    """
    manifest = Manifest(plan, path)
    begin = time.perf_counter()
    known = manifest.check(loaded.report.rank, checksums(loaded))
    return {"manifest": str(manifest.path), "first": not known, "seconds": time.perf_counter() - begin}
