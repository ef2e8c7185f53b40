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
    "one column of a matrix of rows": lambda t: t.view(6 * 128, 1, 512)[:, :, 100:],
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


def test_only_copies_from_the_host_to_the_device_of_this_thread_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "Driver", lambda: None)
    source, to = SOURCE[0][:, 256:], torch.empty(128, 256, dtype=torch.int32)
    with boxes.box_copies():
        assert to.copy_(source) is to
        assert torch.equal(to, source)


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
