"""``loadmaster load MODEL``: carry a proven plan out, in host memory or on GPUs, and report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadmaster.cli.options import add_capacity_arguments, add_model_arguments, positive, staging, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_capacity_arguments(parser)
    parser.add_argument("--rank", type=whole, metavar="R", help="load only this rank (default: all, one after another)")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="host memory (default), or this host's GPUs: as many ranks at a time as there are",
    )
    parser.add_argument(
        "--io",
        choices=["auto", "buffered", "direct"],
        default="auto",
        help="onto GPUs, read through the page cache or past it (default: past it where it does not hold the files)",
    )
    parser.add_argument(
        "--num-readers",
        type=positive,
        metavar="N",
        help="reading threads (default: twice the cores, to 16; onto GPUs the cores but two, to 32)",
    )
    parser.add_argument(
        "--staging",
        type=staging,
        metavar="SIZE",
        help="budget of staging memory (default: 256MiB; onto GPUs 8MiB a reader)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="checksum every parameter where it lies, and hold it against the manifest that the first such load wrote",
    )
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="the manifest (default: by the plan's hash, in the user's cache)"
    )
    parser.add_argument("--digest", action="store_true", help="add shape, dtype and SHA-256 of every parameter")


def _make_ring(args: argparse.Namespace) -> Any:
    from loadmaster.loader import make_ring

    return make_ring(args.num_readers, args.staging)


@contextmanager
def _ring(args: argparse.Namespace) -> Iterator[Future[Any] | None]:
    """Have memory page-locked while the headers are read and the plan is proven, and give it back in the end."""
    if args.device != "cuda":
        yield None
        return
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(_make_ring, args)
        try:
            yield making
        finally:
            if making.exception() is None:
                making.result().close()


def run(args: argparse.Namespace) -> int:
    """Load, show progress on standard error, and print the report."""
    with _ring(args) as ring:
        return _load(args, ring)


def _load(args: argparse.Namespace, ring: Future[Any] | None) -> int:
    from loadmaster.cli.planning import prove_arguments
    from loadmaster.errors import UsageError

    proof = prove_arguments(args)
    plan = proof.require_proven()
    if args.rank is not None and not 0 <= args.rank < plan.num_ranks:
        raise UsageError(f"--rank {args.rank}: the layout has ranks 0 to {plan.num_ranks - 1}")
    ranks = range(plan.num_ranks) if args.rank is None else [args.rank]

    from loadmaster.cli.progress import ByteProgress
    from loadmaster.host_memory import require_memory
    from loadmaster.loader import LoadedRank, Manifest, checksums, load_rank, load_ranks, num_devices
    from loadmaster.loader.memory import MORE_RANKS
    from loadmaster.plan.proof import STAGING_BYTES

    def verify(loaded: LoadedRank) -> dict[str, Any]:
        manifest = Manifest(plan, args.manifest)
        begin = time.perf_counter()
        known = manifest.check(loaded.report.rank, checksums(loaded))
        return {"manifest": str(manifest.path), "first": not known, "seconds": time.perf_counter() - begin}

    if args.device == "cpu":  # before the first rank is read, not when it is the largest's turn
        largest = max((proof.ranks[r] for r in ranks), key=lambda r: r.resident_bytes)
        staging_bytes = plan.rank(largest.rank).staging_bytes(args.staging or STAGING_BYTES)
        what = f"rank {largest.rank}: its parameters and staging take"
        require_memory(largest.resident_bytes + staging_bytes, what, hint=MORE_RANKS)
    reports: list[dict[str, Any]] = []
    total = sum(proof.ranks[r].needed_bytes for r in ranks)
    at_once = 1 if args.device == "cpu" else max(num_devices(), 1)
    seconds = 0.0
    with ByteProgress(total, "loading") as progress:
        options = {
            "on_progress": progress.advance,
            "num_readers": args.num_readers,
            "staging_bytes": args.staging,
        }
        for first in range(0, len(ranks), at_once):
            group = ranks[first : first + at_once]
            if ring is None:
                loaded = {rank: load_rank(plan, rank, **options) for rank in group}
            else:
                devices = {r: f"cuda:{i}" for i, r in enumerate(group)}
                loaded = load_ranks(plan, devices, ring=ring.result(), io=args.io, **options)
            for rank_loaded in loaded.values():
                report = rank_loaded.report.as_json()
                if args.verify:
                    report["verified"] = verify(rank_loaded)
                if args.digest:
                    report["params"] = rank_loaded.digest()
                reports.append(report)
            seconds += max(r["seconds"] for r in reports[-len(group) :])
            del loaded, rank_loaded
    result = {
        "loaded": True,
        "plan_hash": plan.hash,
        "needed_bytes": sum(r["needed_bytes"] for r in reports),
        "seconds": seconds,
        "findings": [f.as_json() for f in proof.findings],
        "ranks": reports,
    }
    if args.json:
        from loadmaster.report.json import dumps

        print(dumps(result))
    else:
        from loadmaster.cli.streams import console
        from loadmaster.report.text import print_load

        print_load(console(), result)
    return 0
