"""Windows, carried out on the host: what a device would be sent goes to plain memory instead."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from loadmaster.architectures.algebra import leaves, whole
from loadmaster.checkpoint import LocalStore, open_checkpoint
from loadmaster.loader import load_rank
from loadmaster.loader.cuda.windows import CLOSE, Copies, Windows, copies_of, joined, windows
from loadmaster.loader.memory import Arena
from loadmaster.loader.operations import destination, evaluate, fill, view_of_span
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.specs import itemsize
from loadmaster.plan.strided import strided_run
from loadmaster.synth import PRESETS, write_tiny

LAYOUTS = {
    "one": ParallelLayout(),
    "tp2": ParallelLayout(tensor_parallel_size=2),
    "tp2 ep": ParallelLayout(tensor_parallel_size=2, enable_expert_parallel=True),
    "pp2 tp2": ParallelLayout(pipeline_parallel_size=2, tensor_parallel_size=2),
}


@pytest.fixture(scope="module", params=["glm-5.1-fp8", "qwen3-moe", "gpt-oss", "phi-4", "kimi-k2-int4", "granite-moe"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    write_tiny(PRESETS[request.param], path, num_shards=2)
    return path


def carry_out(w: Windows, plan: Plan, slot: np.ndarray) -> int:
    """Do what a window says, with memory in place of devices; return the bytes that left the slot."""
    sent = 0
    c = w.copies
    with LocalStore(plan.model_path) as store:
        for i in range(len(w)):
            length = w.high[i] - w.low[i]
            assert 0 < length <= len(slot)
            slot[:] = 0xEE
            store.readinto(plan.checkpoint.files[w.file[i]].name, w.low[i], [memoryview(slot)[:length]])
            shift = slot.ctypes.data - w.low[i]
            done = 0
            for call in range(w.calls[i], w.calls[i + 1]):
                rows = range(w.first[call], w.first[call + 1])
                assert w.is_peer[call] or c.height[rows.start] == 1 or len(rows) == 1
                for row in rows:
                    assert c.device[row] == w.device[call]
                    for run in range(int(c.height[row])):
                        at = int(c.low[row] + run * c.from_pitch[row])
                        assert w.low[i] <= at <= at + c.width[row] <= w.high[i]
                        source = int(c.to[w.origin[row]]) if w.is_peer[call] else at + shift
                        ctypes.memmove(int(c.to[row] + run * c.to_pitch[row]), source, int(c.width[row]))
                    done += int(c.width[row] * c.height[row])
                    sent += 0 if w.is_peer[call] else int(c.width[row] * c.height[row])
            assert done == w.needed[i]
    return sent


def union_bytes(plan: Plan) -> int:
    """Bytes of files that any rank reads, each counted once."""
    reads = sorted(read for r in range(plan.num_ranks) for read in zip(*map(list, plan.rank(r).reads), strict=True))
    total, at = 0, (-1, 0)
    for file, start, end in reads:
        start = max(start, at[1]) if file == at[0] else start
        if end > start:
            total, at = total + int(end - start), (file, end)
    return total


@pytest.mark.parametrize("slot_bytes", [2**12, 2**15, 2**22])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_of_a_host_gets_what_it_gets_alone(checkpoint: Path, layout: str, slot_bytes: int) -> None:
    plan = prove(build_plan(open_checkpoint(checkpoint), LAYOUTS[layout])).require_proven()
    ranks = range(plan.num_ranks)
    arenas = {r: Arena(plan.rank(r).specs) for r in ranks}
    made: list[Copies] = []
    for r in ranks:
        derived = plan.rank(r)
        for tensor in arenas[r].tensors.values():
            tensor.view(torch.uint8).fill_(0xA5)
        addresses = np.array([arenas[r].tensors[s.name].data_ptr() for s in derived.specs])
        rows, others = copies_of(derived, addresses, r, plan.checkpoint.table)
        made.append(rows)
        for group in derived.groups:
            if group.is_fill:
                fill(arenas[r].tensors, derived, group)
        for group in others:
            _compute(plan, r, group, arenas[r])
    w = windows(joined(made), slot_bytes)
    sent = carry_out(w, plan, np.empty(slot_bytes, np.uint8))
    needed_by = [tuple(sorted(set(w.copies.device[w.first[a] : w.first[b]]))) for a, b in pairwise(w.calls)]
    for devices in set(needed_by):
        own = [(w.file[i], w.low[i]) for i in range(len(w)) if needed_by[i] == devices]
        assert own == sorted(own)
    assert sum(w.high) - sum(w.low) <= union_bytes(plan) + CLOSE * len(w)
    wanted = sum(int((rows.width * rows.height).sum()) for rows in made)
    assert sent == wanted if len(made) == plan.layout.pipeline_parallel_size else sent < wanted
    for r in ranks:
        for name, expected in load_rank(plan, r).tensors.items():
            assert torch.equal(arenas[r].tensors[name].view(torch.uint8), expected.view(torch.uint8)), name


def _compute(plan: Plan, rank: int, group: MoveGroup, arena: Arena) -> None:
    derived, table = plan.rank(rank), plan.checkpoint.table
    with LocalStore(plan.model_path) as store:
        for place in range(len(group.params)):
            operands = []
            for k, view in enumerate(leaves(group.piece.source)):
                run = strided_run(view.factors, view.box, itemsize(view.dtype))
                tensor = int(group.tensors[place, k])
                file = plan.checkpoint.files[table.file[tensor]].name
                data = bytearray(store.read_range(file, int(table.start[tensor]) + run.offset, run.span))
                operands.append(view_of_span(view, torch.frombuffer(data, dtype=torch.uint8)))
            target = destination(arena.tensors, derived, group, place, whole(group.piece.source.shape))
            target.copy_(evaluate(group.piece.source, iter(operands)))


def rows(*of: Sequence[int]) -> Copies:
    """Each (low, to, width, height, from_pitch, to_pitch, base, device), all of one file."""
    low, to, width, height, from_pitch, to_pitch, base, device = np.array(of, dtype=np.int64).T
    zero = np.zeros(len(of), dtype=np.int64)
    return Copies(zero, low, to, width, height, from_pitch, to_pitch, base, device, zero)


def test_neighbours_are_read_together_and_far_ones_are_not() -> None:
    near, far = 100 + CLOSE, 200 + 3 * CLOSE
    w = windows(
        rows((0, 0, 100, 1, 100, 100, 0, 0), (near, 100, 10, 1, 10, 10, near, 0), (far, 110, 10, 1, 10, 10, far, 0)),
        2**20,
    )
    assert list(zip(w.low, w.high, strict=True)) == [(0, near + 10), (far, far + 10)]
    assert w.needed == [110, 10]


def test_what_two_devices_need_leaves_the_host_once_and_by_turns() -> None:
    w = windows(rows((0, 0, 4096, 1, 4096, 4096, 0, 0), (0, 10_000, 4096, 1, 4096, 4096, 0, 1)), 1024)
    assert len(w) == 4
    assert w.is_peer == [False, True] * 4
    assert w.device == [0, 1, 1, 0, 0, 1, 1, 0]


def test_both_halves_of_a_row_parallel_tensor_are_read_at_once() -> None:
    left, right = (0, 0, 50, 8, 100, 50, 0, 0), (50, 1000, 50, 8, 100, 50, 0, 1)
    w = windows(rows(left, right), 400)
    assert list(zip(w.low, w.high, strict=True)) == [(0, 400), (400, 800)]
    assert w.needed == [400, 400]


def test_nothing_to_copy_is_no_window() -> None:
    assert len(windows(joined([]), 4096)) == 0
    assert len(windows(rows((0, 0, 0, 1, 0, 0, 0, 0)), 4096)) == 0


def test_devices_that_need_different_bytes_take_turns_and_end_together() -> None:
    mine = [(i * 1000, 0, 1000, 1, 1000, 1000, i * 1000, 0) for i in range(8)]
    its = [(10**6 + i * 1000, 0, 1000, 1, 1000, 1000, 10**6 + i * 1000, 1) for i in range(4)]
    assert windows(rows(*mine, *its), 1000).device == [0, 0, 1] * 4
