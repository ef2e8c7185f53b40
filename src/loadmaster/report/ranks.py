"""Prints the figures of all ranks: a table, the totals, and what the columns mean.

Ranks of one stage with the same sizes share a line, since one line for each is readable only up to a dozen or so. JSON lists
every rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from loadmaster.findings import gib, ranges
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import RankFigures
from loadmaster.report.console import print_wide, say, unit_of

EXACT = 16
"""Up to this many ranks share a line only if all figures are equal; of more, the number of reads is given as a range."""

LEGEND = (
    "needed: stored bytes of the rank's parameters; fetched: bytes read for them; replica: needed bytes that a lower rank "
    "also needs, or that the rank needs twice"
)
HOST = "resident: on the rank's device; host: tables in the memory of the host, of which each token reads a few rows"
SPANS = (
    "for a tensor that is cut across its rows, each rank needs many short pieces, and reads the span that holds them"
)


@dataclass(frozen=True)
class Line:
    """Ranks of one stage that share a line: all of ``dp`` × ``tp``, in the order of their numbers."""

    ranks: tuple[RankFigures, ...]
    dp: tuple[int, ...]
    tp: tuple[int, ...]


def lines_of(ranks: Sequence[RankFigures]) -> list[Line]:
    """Return the lines of the table, in the order of their first ranks."""
    _, size = unit_of(max((r.resident_bytes for r in ranks), default=0))
    alike: dict[tuple[object, ...], list[RankFigures]] = defaultdict(list)
    for r in ranks:
        reads = r.num_reads if len(ranks) <= EXACT else None
        alike[r.pp_rank, r.layers, r.draft_layers, r.num_params, *_sizes(r, size), r.carries, reads].append(r)
    lines = [line for group in alike.values() for line in _rectangles(group)]
    return sorted(lines, key=lambda line: line.ranks[0].rank)


def _rectangles(group: Sequence[RankFigures]) -> Iterator[Line]:
    """Divide ranks that are alike into rectangles of data-parallel × tensor-parallel ranks."""
    tensor_ranks: dict[int, list[int]] = defaultdict(list)
    for r in group:
        tensor_ranks[r.dp_rank].append(r.tp_rank)
    rectangles: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for dp, members in tensor_ranks.items():
        rectangles[tuple(sorted(members))].append(dp)
    for tps, dps in rectangles.items():
        yield Line(tuple(r for r in group if r.dp_rank in dps), tuple(sorted(dps)), tps)


def print_ranks(console: Console, ranks: Sequence[RankFigures], layout: ParallelLayout) -> None:
    """Print the ranks' figures, the totals, and what the columns mean."""
    unit, size = unit_of(max((r.resident_bytes for r in ranks), default=0))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    axes = ["pp", "dp", "tp"] if layout.data_parallel_size > 1 else ["pp", "tp"]
    host = ["host"] if any(r.host_bytes for r in ranks) else []
    for column in (
        "rank",
        *axes,
        "layers",
        "params",
        f"resident {unit}",
        *host,
        "needed",
        "fetched",
        "replica",
        "reads",
    ):
        table.add_column(column, justify="left" if column == "layers" else "right", no_wrap=True)
    table.add_column("receives", no_wrap=True)
    for line in lines_of(ranks):
        r = line.ranks[0]
        at = {"pp": str(r.pp_rank), "dp": ranges(line.dp), "tp": ranges(line.tp)}
        reads = [other.num_reads for other in line.ranks]
        table.add_row(
            numbers([other.rank for other in line.ranks]),
            *(at[axis] for axis in axes),
            f"{r.layers[0]}-{r.layers[1] - 1}" + "".join(f", mtp {d}" for d in r.draft_layers),
            f"{r.num_params:,}",
            *_sizes(r, size, with_host=bool(host)),
            f"{min(reads):,}" + (f"-{max(reads):,}" if min(reads) < max(reads) else ""),
            ", ".join(r.carries),
        )
    print_wide(console, table)
    for words in _summary(ranks, size):
        say(console, words)


def _sizes(r: RankFigures, size: int, *, with_host: bool = True) -> tuple[str, ...]:
    host = (r.host_bytes,) if with_host else ()
    return tuple(f"{n / size:.2f}" for n in (r.resident_bytes, *host, r.needed_bytes, r.fetched_bytes, r.replica_bytes))


def numbers(ranks: Sequence[int]) -> str:
    """Return the numbers of ranks; of many runs only the first and the last.

    >>> numbers([8, 9, 10]), numbers([0, 1, 8, 9, 16, 17])
    ('8-10', '0-1, …, 16-17')
    """
    runs = ranges(ranks).split(", ")
    return ", ".join(runs if len(runs) <= 2 else [runs[0], "…", runs[-1]])


def _summary(ranks: Sequence[RankFigures], size: int) -> Iterator[str]:
    needed, fetched = sum(r.needed_bytes for r in ranks), sum(r.fetched_bytes for r in ranks)
    if len(ranks) > 1:
        resident, replica = sum(r.resident_bytes for r in ranks), sum(r.replica_bytes for r in ranks)
        tables = sum(r.host_bytes for r in ranks)
        hosted = f"host {gib(tables)}, " if tables else ""
        most, least = max(ranks, key=lambda r: r.resident_bytes), min(ranks, key=lambda r: r.resident_bytes)
        yield (
            f"{len(ranks)} ranks: resident {gib(resident)}, {hosted}needed {gib(needed)}, fetched {gib(fetched)}, "
            f"replica {gib(replica)}; most resident: rank {most.rank} with {gib(most.resident_bytes)}, "
            f"least: rank {least.rank} with {gib(least.resident_bytes)}"
        )
    yield LEGEND
    if any(r.host_bytes for r in ranks):
        yield HOST
    if fetched > needed and any(_sizes(r, size)[2] != _sizes(r, size)[3] for r in ranks):
        yield f"fetched exceeds needed by {gib(fetched - needed)}: {SPANS}"
