"""A new layout: what each rank keeps, gets from others and reads, against a count of every byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ArgumentError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.plan.difference import RankChange, compare_layouts
from tests.conftest import Tiny

LAYOUTS = {
    "stages into slices": (ParallelLayout(4), ParallelLayout(2, 2)),
    "fewer ranks": (ParallelLayout(2, 2), ParallelLayout(3)),
    "more ranks, whole experts": (
        ParallelLayout(1, 2),
        ParallelLayout(2, 2, data_parallel_size=2, enable_expert_parallel=True),
    ),
    "experts in turn, and a draft": (
        ParallelLayout(2, 2, enable_expert_parallel=True),
        ParallelLayout(2, 2, enable_expert_parallel=True, expert_placement="round_robin", num_draft_layers=1),
    ),
}


def plan(path: Path, layout: ParallelLayout) -> Plan:
    return build_plan(open_checkpoint(path), layout)


def read_bytes(of: Plan) -> list[np.ndarray]:
    """Return for each rank which bytes of the files it needs, all files one after another."""
    sizes = [0, *np.cumsum([f.size for f in of.checkpoint.files]).tolist()]
    ranks = []
    for rank in range(of.num_ranks):
        steps = np.zeros(sizes[-1] + 1, dtype=np.int32)  # +1 where a run begins, -1 where it ends
        for group in of.rank(rank).groups:
            for view, run in enumerate(group.runs):
                at = np.array(sizes)[of.table.file[group.tensors[:, view]]] + group.starts(of.table, view)
                for count, stride in zip(run.counts, run.strides, strict=True):
                    at = np.add.outer(at, np.arange(count) * stride).reshape(-1)
                np.add.at(steps, at, 1)
                np.add.at(steps, at + run.run, -1)
        ranks.append(np.cumsum(steps)[:-1] > 0)
    return ranks


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_byte_is_kept_sent_or_read(tiny: Tiny, name: str) -> None:
    before, after = (plan(tiny("glm-5.1-fp8"), layout) for layout in LAYOUTS[name])
    per_host = 2
    found = compare_layouts(before, after, per_host)
    had, needs = read_bytes(before), read_bytes(after)
    nothing = np.zeros_like(needs[0])
    for rank in range(max(len(had), len(needs))):
        mine = had[rank] if rank < len(had) else nothing
        need = needs[rank] if rank < len(needs) else nothing
        first = rank // per_host * per_host
        host = np.logical_or.reduce([nothing, *had[first : first + per_host]])
        anywhere = np.logical_or.reduce(had)
        expected = RankChange(
            rank=rank,
            needed_bytes=int(need.sum()),
            kept_bytes=int((need & mine).sum()),
            host_bytes=int((need & ~mine & host).sum()),
            remote_bytes=int((need & ~mine & ~host & anywhere).sum()),
            storage_bytes=int((need & ~anywhere).sum()),
            dropped_bytes=int((mine & ~need).sum()),
            resident_bytes=after.rank(rank).resident_bytes if rank < len(needs) else 0,
            resident_before=before.rank(rank).resident_bytes if rank < len(had) else 0,
        )
        assert found.ranks[rank] == expected
    assert found.new_bytes == sum(r.host_bytes + r.remote_bytes + r.storage_bytes for r in found.ranks)


def test_the_same_layout_moves_nothing(tiny: Tiny) -> None:
    path = tiny("glm-5.1-fp8")
    assert compare_layouts(plan(path, ParallelLayout(2, 2)), plan(path, ParallelLayout(2, 2))).is_equal
    assert not compare_layouts(plan(path, ParallelLayout(2)), plan(path, ParallelLayout(1))).is_equal


def test_only_layouts_of_one_checkpoint_are_compared(tiny: Tiny) -> None:
    one, other = plan(tiny("qwen3"), ParallelLayout(2)), plan(tiny("smollm2"), ParallelLayout(2))
    with pytest.raises(ArgumentError, match="different checkpoints"):
        compare_layouts(one, other)
    with pytest.raises(ArgumentError, match="ranks_per_host"):
        compare_layouts(one, one, 0)
