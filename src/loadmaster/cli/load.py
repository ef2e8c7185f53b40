"""``loadmaster load MODEL``: carry a proven plan out, in host memory or on GPUs, and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadmaster.cli.options import (
    add_capacity_arguments,
    add_download_dir_argument,
    add_model_arguments,
    positive,
    require_rank,
    staging,
    whole,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from loadmaster.loader.cuda.ring import Ring
    from loadmaster.plan import Proof


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_download_dir_argument(parser)
    add_capacity_arguments(parser)
    parser.add_argument("--rank", type=whole, metavar="R", help="load only this rank (default: all, one after another)")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="load into host memory (default), or onto this host's GPUs, as many ranks at a time as there are GPUs",
    )
    parser.add_argument(
        "--io",
        choices=["auto", "buffered", "direct"],
        default="auto",
        help="how files are read onto GPUs: through the page cache, or with direct I/O (default: direct where the cache does "
        "not hold them)",
    )
    parser.add_argument(
        "--num-readers",
        type=positive,
        metavar="N",
        help="reading threads (default: twice the cores, at most 16; onto GPUs 12 for each, at most the cores less two)",
    )
    parser.add_argument(
        "--staging",
        type=staging,
        metavar="SIZE",
        help="limit of staging memory (default: 256MiB; onto GPUs 8MiB for each reader)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare a checksum of every loaded parameter with the manifest; the first such load writes it",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="the manifest (default: a file in the user's cache, named after the plan's hash)",
    )
    parser.add_argument("--digest", action="store_true", help="add shape, dtype and SHA-256 of every parameter")


def run(args: argparse.Namespace) -> int:
    """Load, show progress on standard error, and print the report."""
    if args.device == "cpu":
        return _load(args, None)
    from loadmaster.loader.schedule import ring_ahead

    sizes = (args.pipeline_parallel_size, args.tensor_parallel_size, args.data_parallel_size)
    num_ranks = prod(sizes) if args.rank is None else 1
    with ring_ahead(args.num_readers, args.staging, num_ranks) as ring:
        return _load(args, ring)


def _load(args: argparse.Namespace, ring: Future[Ring] | None) -> int:
    from loadmaster.cli.planning import prove_to_load

    def chosen(proof: Proof) -> Sequence[int]:
        num_ranks = proof.plan.num_ranks
        if args.rank is not None:
            require_rank("--rank", args.rank, num_ranks)
        ranks = range(num_ranks) if args.rank is None else [args.rank]
        if ring is None:
            from loadmaster.loader.schedule import require_room

            require_room(proof, ranks, args.staging)
        return ranks

    proof, ranks = prove_to_load(args, chosen)
    plan = proof.require_proven()

    from loadmaster.cli.progress import ByteProgress
    from loadmaster.loader.schedule import compare_with_manifest, load_in_turns

    reports: list[dict[str, Any]] = []
    seconds = 0.0
    with ByteProgress(sum(proof.ranks[r].needed_bytes for r in ranks), "loading") as progress:
        options = {"on_progress": progress.advance, "num_readers": args.num_readers, "staging_bytes": args.staging}
        for group in load_in_turns(plan, ranks, ring, io=args.io, **options):
            for loaded in group.values():
                report = loaded.report.as_json()
                if args.verify:
                    report["verified"] = compare_with_manifest(plan, loaded, args.manifest)
                if args.digest:
                    report["params"] = loaded.digest()
                reports.append(report)
            seconds += max(r["seconds"] for r in reports[-len(group) :])
            del group, loaded
    _print(args, proof, reports, seconds)
    return 0


def _print(args: argparse.Namespace, proof: Proof, reports: Sequence[dict[str, Any]], seconds: float) -> None:
    result = {
        "loaded": True,
        "plan_hash": proof.plan.hash,
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
