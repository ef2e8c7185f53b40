"""What people see of the ranks: alike ones share a line, totals and a legend follow, JSON keeps all apart."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import RankFigures, build_plan, prove
from loadmaster.report.json import proof_object
from loadmaster.report.ranks import lines_of, print_ranks
from tests.conftest import Tiny

RANK = RankFigures(
    *(0, 0, 0, 0, 0),
    layers=(0, 4),
    draft_layers=(),
    num_params=10,
    resident_bytes=2**30,
    needed_bytes=2**30,
    fetched_bytes=2**30,
    replica_bytes=0,
    num_reads=7,
    staging_bytes=0,
    carries=(),
)


def ranks(layout: ParallelLayout, **of_first: int) -> list[RankFigures]:
    """Return ranks that are alike in all figures; the first of each stage has others."""
    made = []
    for rank in range(layout.num_ranks):
        at = layout.coordinate(rank)
        place = {"rank": rank, "pp_rank": at.pp_rank, "tp_rank": at.tp_rank, "dp_rank": at.dp_rank}
        made.append(replace(RANK, **place, **(of_first if at.tp_rank == at.dp_rank == 0 else {})))
    return made


def told(layout: ParallelLayout, **of_first: int) -> list[tuple[list[int], tuple[int, ...], tuple[int, ...]]]:
    return [([r.rank for r in line.ranks], line.dp, line.tp) for line in lines_of(ranks(layout, **of_first))]


def test_ranks_of_one_stage_with_the_same_figures_share_a_line() -> None:
    assert told(ParallelLayout(2, 4)) == [([0, 1, 2, 3], (0,), (0, 1, 2, 3)), ([4, 5, 6, 7], (0,), (0, 1, 2, 3))]
    assert told(ParallelLayout(1, 2), num_params=9) == [
        ([0], (0,), (0,)),
        ([1], (0,), (1,)),
    ]


def test_data_parallel_ranks_are_told_in_blocks() -> None:
    layout = ParallelLayout(1, 2, data_parallel_size=3)
    assert told(layout, replica_bytes=2**29) == [
        ([0], (0,), (0,)),
        ([1], (0,), (1,)),
        ([2, 3, 4, 5], (1, 2), (0, 1)),
    ]


def test_the_number_of_reads_tells_few_ranks_apart_and_is_a_range_of_many() -> None:
    assert len(told(ParallelLayout(2, 8), num_reads=6)) == 4
    assert len(told(ParallelLayout(3, 8), num_reads=6)) == 3


def printed(figures: list[RankFigures], layout: ParallelLayout) -> list[str]:
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        print_ranks(console, figures, layout)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_512_ranks_fit_on_a_screen_with_totals_extremes_and_why_more_is_read() -> None:
    layout = ParallelLayout(8, 8, data_parallel_size=8)
    figures = ranks(layout, resident_bytes=2**31, replica_bytes=2**28)
    figures[77] = replace(figures[77], resident_bytes=2**29, fetched_bytes=3 * 2**30)
    lines = printed(figures, layout)
    assert len(lines) < 40
    rows = [line.split() for line in lines]
    assert ["80-87,", "…,", "464-471", "2", "1-7", "0-7", "0-3", "10", "1.00", "1.00", "1.00", "0.00", "7"] in rows
    (totals,) = (line for line in lines if line.startswith("512 ranks: "))
    assert totals == (
        "512 ranks: resident 519.50 GiB, needed 512.00 GiB, fetched 514.00 GiB, replica 2.00 GiB; "
        "most resident: rank 0 with 2.00 GiB, least: rank 77 with 512.0 MiB"
    )
    assert any(line.startswith("needed: ") and "fetched: " in line and "replica: " in line for line in lines)
    assert any(line.startswith("fetched exceeds needed by 2.00 GiB: ") for line in lines)


def test_where_no_more_is_read_than_needed_nothing_is_said_of_it() -> None:
    layout = ParallelLayout(4)
    lines = printed(ranks(layout), layout)
    assert [line.split()[0] for line in lines] == ["rank", "0", "1", "2", "3", "4", "needed:"]
    assert not any("exceeds" in line for line in lines)


def test_json_keeps_every_rank_apart(tiny: Tiny) -> None:
    proof = prove(build_plan(open_checkpoint(tiny("qwen3")), ParallelLayout(1, 2, data_parallel_size=2)))
    assert len(lines_of(proof.ranks)) < 4
    assert [r["rank"] for r in proof_object(proof, 1.0)["ranks"]] == [0, 1, 2, 3]
