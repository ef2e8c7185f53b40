"""Columns that a rank takes from a streamed tensor: which are a box, and that copying the box is what torch would do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from loadmaster.integrations.vllm import box_copies as boxes
from loadmaster.integrations.vllm.box_copies import Box, box_between

SOURCE = torch.arange(6 * 128 * 512, dtype=torch.int32).view(6, 128, 512)

CUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "columns": lambda t: t[0][:, 256:],
    "columns and rows": lambda t: t[0][10:120, 128:384],
    "columns of a stack": lambda t: t[:, :, :256],
    "rows of a stack": lambda t: t[:, 64:],
    "every other row": lambda t: t[0][::2],
    "columns beside a dim of one": lambda t: t.view(6 * 128, 1, 512)[:, :, 100:],
    "columns of a stack of one": lambda t: t[:1, :, 256:],
    "halves of two long rows": lambda t: t.view(2, -1)[:, 3 * 128 * 256 :],
    "as few bytes as a box has": lambda t: t[0][:64, 256:],
}
UNLIKE = ("rows of a stack", True)
"""Long runs that are to become many short ones: no box."""


def carry_out(box: Box, to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy as the driver does."""
    for row in range(box.height):
        begins = (to.data_ptr() + row * box.to_pitch, source.data_ptr() + row * box.from_pitch)
        ctypes.memmove(*begins, box.width)


@pytest.mark.parametrize(
    ("cut", "is_inside"), [(cut, inside) for cut in CUTS for inside in (False, True) if (cut, inside) != UNLIKE]
)
def test_copying_the_box_is_copying_the_tensor(cut: str, is_inside: bool) -> None:
    source = CUTS[cut](SOURCE)
    around = torch.zeros(*source.shape[:-1], source.shape[-1] + (8 if is_inside else 0), dtype=source.dtype)
    to = around[..., 8:] if is_inside else around
    expected = around.clone()
    expected[..., around.shape[-1] - source.shape[-1] :].copy_(source)
    box = box_between(to, source)
    assert box is not None
    carry_out(box, to, source)
    assert torch.equal(around, expected)


def test_an_expert_s_columns_are_a_box_into_the_stack_that_vllm_holds() -> None:
    stack, expert = torch.zeros(4, 128, 256, dtype=torch.int32), SOURCE[3]
    box = box_between(stack[2], expert[:, 256:])
    assert box == Box(width=1024, height=128, to_pitch=1024, from_pitch=2048)


@pytest.mark.parametrize(
    ("to", "source"),
    [
        (torch.empty(128, 512), torch.empty(128, 512)),  # one run: torch copies it without help
        (torch.empty(512, 128), torch.empty(128, 512).t()),
        (torch.empty(64, 8, 64), torch.empty(64, 16, 128)[:, ::2, ::2]),
        (torch.empty(128, 256, dtype=torch.bfloat16), torch.empty(128, 512)[:, 256:]),  # to be converted
        (torch.empty(128, 1, 256), torch.empty(128, 512)[:, 256:]),  # to be broadcast
        (torch.empty(16, 16), torch.empty(16, 32)[:, 16:]),  # small
        (torch.empty(128, 1024)[:, ::4], torch.empty(128, 512)[:, 256:]),
        (torch.empty(6, 64, 520)[..., 8:], torch.empty(6, 128, 512)[:, 64:]),
    ],
)
def test_what_is_no_box_is_left_to_torch(to: torch.Tensor, source: torch.Tensor) -> None:
    assert box_between(to, source) is None


class Recorder:
    """A driver and its stream, which copies when it is waited for."""

    cuda_stream = 7

    def __init__(self) -> None:
        self.begun: list[tuple[Box, int, int]] = []
        self.num_boxes = 0

    def box(self, to: int, to_pitch: int, source: int, from_pitch: int, width: int, height: int, stream: int) -> None:
        assert stream == self.cuda_stream
        self.begun.append((Box(width, height, to_pitch, from_pitch), to, source))

    def synchronize(self) -> None:
        self.num_boxes += len(self.begun)
        for box, to, source in self.begun:
            for row in range(box.height):
                ctypes.memmove(to + row * box.to_pitch, source + row * box.from_pitch, box.width)
        self.begun.clear()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(boxes, "Driver", lambda: made)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made)
    return made


def test_a_copy_of_columns_is_done_when_it_returns(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_is_between", lambda to, source: True)
    to = torch.zeros(128, 256, dtype=torch.int32)
    with boxes.box_copies():
        assert to.copy_(SOURCE[0][:, 256:]) is to
    assert torch.equal(to, SOURCE[0][:, 256:])
    assert recorder.num_boxes == 1


def test_other_calls_and_copies_are_torch_s(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    to, columns = torch.zeros(128, 256, dtype=torch.int32), SOURCE[0][:, 256:]
    with boxes.box_copies():
        assert to.copy_(columns) is to  # both are on the host
        monkeypatch.setattr(boxes, "_is_between", lambda to, source: True)
        to.copy_(columns, non_blocking=True)
        torch.zeros(128, 512, dtype=torch.int32).copy_(SOURCE[0])
        assert torch.equal(to + 0, columns)
    assert recorder.num_boxes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("cut", CUTS)
def test_a_gpu_gets_what_torch_would_copy(cut: str) -> None:
    pinned = SOURCE.pin_memory()
    source = CUTS[cut](pinned)
    with boxes.box_copies():
        to = torch.zeros(source.shape, dtype=source.dtype, device="cuda").copy_(source)
        values = [int(v) for v in source.flatten()[:2]]
    assert all(a < b for a, b in pairwise(values))
    assert torch.equal(to.cpu(), source)
