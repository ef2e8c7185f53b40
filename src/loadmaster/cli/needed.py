"""``plan --rank R --list``: the stored tensors that a rank reads, and the bytes of them, for other loaders."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from loadmaster.cli.options import require_rank, whole
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.plan import NeededTensor, Proof


def add_needed_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--list`` and ``--rank``."""
    group = parser.add_argument_group("what a rank reads", "for other loaders; with --json under `needed`")
    group.add_argument(
        "--list",
        action="store_true",
        help="print only the stored tensors that --rank reads, a line each: the shard, the tensor, and the bytes of the shard",
    )
    group.add_argument("--rank", type=whole, metavar="RANK", help="the rank of --list")


def asked_rank(args: argparse.Namespace) -> int | None:
    """Return the rank whose tensors are listed; None without ``--list``.

    Raises:
        UsageError: one of the options is missing.
    """
    if args.list and args.rank is None:
        raise UsageError("--list: of which rank? Pass --rank too")
    if args.rank is not None and not args.list:
        raise UsageError("--rank is the rank of --list, which is missing")
    return args.rank if args.list else None


def listed(proof: Proof, rank: int) -> dict[str, NeededTensor]:
    """Return the tensors that a rank reads.

    Raises:
        UsageError: there is no such rank.
        PlanError: the plan is not proven.
    """
    from loadmaster.plan import needed

    require_rank("--rank", rank, proof.plan.num_ranks)
    proof.require_proven()
    return needed(proof.plan, rank)


def print_needed(found: dict[str, NeededTensor]) -> None:
    """Print a line for each tensor: shard, name, and ranges as FIRST-LAST, the last byte included as in HTTP's Range."""
    for t in found.values():
        print(t.shard, t.name, ",".join(f"{start}-{end - 1}" for start, end in t.ranges), sep="\t")


def needed_object(found: dict[str, NeededTensor], rank: int) -> dict[str, Any]:
    """Return the JSON object of the tensors that a rank reads; ranges as (first byte, byte after the last)."""
    return {
        "rank": rank,
        "bytes": sum(t.fetched_bytes for t in found.values()),
        "tensors": [
            {
                "name": t.name,
                "shard": t.shard,
                "dtype": t.dtype,
                "shape": t.shape,
                "start": t.start,
                "bytes": t.num_bytes,
                "ranges": t.ranges,
            }
            for t in found.values()
        ],
    }
