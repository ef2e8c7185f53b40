"""Which bytes of each shard some ranks need on disk: what is downloaded for them, and nothing else."""

from __future__ import annotations

from collections.abc import Collection

from loadmaster.arguments import expect
from loadmaster.checkpoint.partial import Span, merged
from loadmaster.plan.plan import Plan


def shard_ranges(plan: Plan, ranks: Collection[int]) -> dict[str, tuple[Span, ...]]:
    """Return the ranges (first byte, byte after the last) that ``ranks`` read, by shard, in order, touching ones joined.

    What several ranks read is there once. The header of every shard is included: opening a checkpoint reads it.

    Raises:
        ArgumentError: an argument has the wrong type, or the layout has no such rank.
    """
    expect("plan", plan, Plan, "a plan, as build_plan returns")
    expect("ranks", ranks, Collection, "numbers of ranks")
    files = plan.checkpoint.files
    spans: dict[str, list[Span]] = {f.name: [(0, f.header_bytes)] for f in files}
    for rank in ranks:
        numbers, starts, ends = (column.tolist() for column in plan.rank(rank).reads)
        for number, start, end in zip(numbers, starts, ends, strict=True):
            spans[files[number].name].append((start, end))
    return {name: merged(of_shard) for name, of_shard in spans.items()}
