"""``loadmaster load MODEL``: carry a proven plan out in host memory, rank by rank, and report."""

from __future__ import annotations

import argparse
from typing import Any

from loadmaster.cli.options import add_capacity_arguments, add_model_arguments, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_capacity_arguments(parser)
    parser.add_argument("--rank", type=int, metavar="R", help="load only this rank (default: all, one after another)")
    parser.add_argument(
        "--num-readers", type=int, metavar="N", help="reading threads (default: twice the cores, to 16)"
    )
    parser.add_argument("--staging", type=size, metavar="SIZE", help="budget of staging memory (default: 256MiB)")
    parser.add_argument("--digest", action="store_true", help="add shape, dtype and SHA-256 of every parameter")


def run(args: argparse.Namespace) -> int:
    """Load, show progress on standard error, and print the report."""
    from loadmaster.cli.planning import prove_arguments
    from loadmaster.errors import PlanError, UsageError

    proof = prove_arguments(args)
    if not proof.proven:
        raise PlanError("the plan is not proven", findings=proof.findings, proof=proof)
    plan = proof.plan
    if args.rank is not None and not 0 <= args.rank < plan.num_ranks:
        raise UsageError(f"--rank {args.rank}: the layout has ranks 0 to {plan.num_ranks - 1}")
    ranks = range(plan.num_ranks) if args.rank is None else [args.rank]

    from loadmaster.cli.progress import ByteProgress
    from loadmaster.loader import load_rank

    reports: list[dict[str, Any]] = []
    total = sum(proof.ranks[r].needed_bytes for r in ranks)
    with ByteProgress(total, "loading") as progress:
        for rank in ranks:
            loaded = load_rank(
                plan,
                rank,
                on_progress=progress.advance,
                num_readers=args.num_readers,
                staging_bytes=args.staging,
            )
            report = loaded.report.as_json()
            if args.digest:
                report["params"] = loaded.digest()
            reports.append(report)
            del loaded
    result = {
        "loaded": True,
        "plan_hash": plan.hash,
        "needed_bytes": sum(r["needed_bytes"] for r in reports),
        "seconds": sum(r["seconds"] for r in reports),
        "findings": [f.as_json() for f in proof.findings],
        "ranks": reports,
    }
    if args.json:
        from loadmaster.report.json import dumps

        print(dumps(result))
    else:
        from rich.console import Console

        from loadmaster.report.text import print_load

        print_load(Console(), result)
    return 0
