"""Ranks of one stage as threads over real sockets: sums, columns side by side, plans compared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
import torch

from loadmaster.distributed import tensor
from loadmaster.distributed.agreement import agree
from loadmaster.distributed.group import PipelineGroup
from loadmaster.distributed.mesh import Mesh
from loadmaster.distributed.peer import PeerLostError
from loadmaster.distributed.tensor import HostGroup
from loadmaster.errors import LoadError
from tests.models.ranks import meshes, together


def summed(size: int, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    with meshes(size) as ends:
        return together(size, lambda slot: HostGroup(ends[slot]).all_reduce(parts[slot].clone()))


@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (5, 7), (300, 999)])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_has_the_same_bits_of_the_sum_in_the_order_of_the_ranks(size: int, shape: tuple[int, ...]) -> None:
    parts = list(torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)))
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    assert all(torch.equal(total, expected) for total in summed(size, parts))


@pytest.mark.parametrize("divide_from", [0, 1 << 30])
def test_narrow_floats_are_added_in_float32_and_rounded_once(divide_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor, "DIVIDE_FROM_BYTES", divide_from)
    parts = [torch.full((5,), x, dtype=torch.bfloat16) for x in (256.0, 1.0, 1.0)]  # 256 + 1 is 256 in bfloat16
    for total in summed(3, parts):
        assert total.dtype == torch.bfloat16
        assert total.tolist() == [258.0] * 5


def test_a_sum_of_a_tensor_that_is_not_contiguous_keeps_its_shape() -> None:
    parts = [torch.arange(6.0).view(2, 3).t(), torch.ones(3, 2)]
    assert summed(2, parts)[1].tolist() == [[1, 4], [2, 5], [3, 6]]


def test_columns_are_put_side_by_side_in_the_order_of_the_ranks() -> None:
    with meshes(3) as ends:
        made = together(3, lambda slot: HostGroup(ends[slot]).all_gather(torch.full((2, 1), float(slot))))
    assert [m.tolist() for m in made] == [[[0, 1, 2], [0, 1, 2]]] * 3


def test_one_rank_may_be_a_call_ahead_of_the_others() -> None:
    """It does not wait for them to read its second message."""
    with meshes(2) as ends, ThreadPoolExecutor(1) as thread:
        fast, slow = (HostGroup(mesh) for mesh in ends)
        first = thread.submit(lambda: [fast.all_reduce(torch.ones(1)), fast.all_reduce(torch.ones(1 << 20))])
        assert slow.all_reduce(torch.ones(1)).item() == 2
        assert slow.all_reduce(torch.ones(1 << 20)).sum() == 2 << 20
        assert [x.sum().item() for x in first.result(30)] == [2, 2 << 20]


@pytest.mark.parametrize("num_elements", [1, 1 << 20])
def test_a_rank_that_ends_is_noticed(num_elements: int) -> None:
    with meshes(3) as ends:
        for end in ends[1]._sockets.values():
            end.close()
        with pytest.raises(PeerLostError, match="tensor-parallel rank 1 of 3 has ended"):
            HostGroup(ends[0]).all_reduce(torch.ones(num_elements))


def test_all_ranks_learn_which_of_them_planned_otherwise() -> None:
    with meshes(2) as ends:

        def compare(slot: int) -> LoadError | None:
            try:
                agree("ab"[slot] * 64, PipelineGroup(0, 1), ends[slot])
            except LoadError as error:
                return error
            return None

        for error in together(2, compare):
            assert f"{'a' * 16} on rank 0, {'b' * 16} on rank 1" in str(error)


def test_a_rank_says_when_it_waits_for_the_others() -> None:
    with meshes(2) as ends, ThreadPoolExecutor(1) as thread:
        said: SimpleQueue[bool] = SimpleQueue()
        ends[0].on_wait = said.put
        first = thread.submit(HostGroup(ends[0]).all_reduce, torch.ones(1))
        assert said.get(timeout=30) is True
        assert said.empty()
        HostGroup(ends[1]).all_reduce(torch.ones(1))
        first.result(30)
        assert said.get(timeout=30) is False


def test_a_mesh_knows_its_own_slot() -> None:
    with pytest.raises(AssertionError):
        Mesh(1, [None])
