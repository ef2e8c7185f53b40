"""Predicted load times: sums by hand on a few ranks, and beside a load that was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import RankFigures, build_plan, prove
from loadmaster.sizing.load_time import LINK_SHARE, PREPARE_S, LoadTime, Rates, load_time
from tests.conftest import Tiny

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def predicted(path: Path, layout: ParallelLayout, rates: Rates) -> tuple[LoadTime, tuple[RankFigures, ...]]:
    proof = prove(build_plan(open_checkpoint(path), layout))
    return load_time(layout, proof.ranks, rates), proof.ranks


def test_stages_of_one_host_share_its_storage(tiny: Tiny) -> None:
    time, ranks = predicted(tiny("llama"), ParallelLayout(2), Rates(1e6))
    needed = sum(r.needed_bytes for r in ranks)
    assert (time.host_bytes, time.needed_bytes, time.amplification) == ((needed,), needed, 1.0)
    assert [r.seconds for r in time.ranks] == [pytest.approx(PREPARE_S + needed / 1e6)] * 2
    assert {r.bottleneck for r in time.ranks} == {"storage"}


def test_a_slow_link_limits_the_rank_that_needs_most(tiny: Tiny) -> None:
    time, ranks = predicted(tiny("deepseek-v3"), ParallelLayout(2), Rates(1e12, 1e6))
    assert [r.seconds for r in time.ranks] == [
        pytest.approx(PREPARE_S + r.needed_bytes / LINK_SHARE / 1e6) for r in ranks
    ]
    assert {r.bottleneck for r in time.ranks} == {"link"}
    assert time.seconds == max(r.seconds for r in time.ranks)


def test_what_several_ranks_of_a_host_need_is_read_once(tiny: Tiny) -> None:
    time, ranks = predicted(tiny("llama"), ParallelLayout(1, 2), Rates(1e6))
    unique = sum(r.needed_bytes - r.replica_bytes for r in ranks)
    assert time.host_bytes == (unique,) and sum(r.needed_bytes for r in ranks) > unique
    apart, _ = predicted(tiny("llama"), ParallelLayout(1, 2), Rates(1e6, hosts=2))
    assert all(size <= unique for size in apart.host_bytes)
    assert apart.amplification > 1  # both hosts read the spans of rows that are cut


def test_copies_of_the_model_on_two_hosts_are_read_twice(tiny: Tiny) -> None:
    layout = ParallelLayout(1, 1, data_parallel_size=2)
    time, _ = predicted(tiny("llama"), layout, Rates(1e6, hosts=2))
    assert time.amplification == pytest.approx(2.0)


def test_thousands_of_ranks_are_summed_quickly_enough_to_be_counted_here(tiny: Tiny) -> None:
    _, (rank,) = predicted(tiny("llama"), ParallelLayout(), Rates(1e6))
    layout = ParallelLayout(4, 8, data_parallel_size=128)
    ranks = [replace(rank, rank=n, pp_rank=layout.coordinate(n).pp_rank) for n in range(4096)]
    assert len(load_time(layout, ranks, Rates(1e9, 5e10, 512)).host_bytes) == 512


def test_hosts_that_the_ranks_do_not_divide_over_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="--hosts 2: 3 ranks"):
        predicted(tiny("llama"), ParallelLayout(3), Rates(1e6, hosts=2))


def one_rank(num_bytes: int) -> RankFigures:
    return RankFigures(0, 0, 0, 0, 0, (0, 1), (), 1, num_bytes, num_bytes, num_bytes, 0, 1, 0, ())


def test_a_cold_load_that_was_measured_is_within_a_fifth_of_the_prediction() -> None:
    """13.5 GB onto one H100 through a disk that gives 1.5 GB/s (benchmarks/README.md, onto GPUs)."""
    measured = json.loads((RESULTS / "2026-11-27-h100-x1" / "start_cold.json").read_text())["ways"]["loadmaster"]
    seconds = mean(run["load"] for run in measured)
    time = load_time(ParallelLayout(), [one_rank(int(13.5e9))], Rates(1.5e9, 54.4e9))
    assert time.seconds == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize("file", ["load_time_warm.json", "load_time_cold.json"])
def test_every_load_that_was_measured_is_within_a_fifth_of_the_prediction(file: str) -> None:
    """Layers of GLM-5.1-FP8 onto one H200, the ranks of three layouts, from the page cache and from a disk."""
    found = json.loads((RESULTS / "2026-11-28-h200-x1" / file).read_text())
    rates = Rates(found["storage_bytes_per_s"], found["link_bytes_per_s"])
    loads = [load for layout in found["layouts"].values() for load in layout]
    assert len(loads) == 5
    for load in loads:
        slower = "read_bytes" if load["bottleneck"] == "storage" else "bytes_to_device"
        time = load_time(ParallelLayout(), [one_rank(load[slower])], rates)
        assert time.seconds == pytest.approx(load["measured"], rel=0.2)
