"""Copies columns of a streamed tensor to a GPU as the driver can: as a box, straight from page-locked memory.

A tensor-parallel rank of vLLM narrows a whole tensor and copies its part. Of columns torch makes a contiguous tensor first, on
one thread of the processor and in memory that is not page-locked, which takes several times as long as the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from loadmaster.loader.cuda.driver import Driver

LEAST_BYTES: Final = 2**16
"""Smaller copies are left to torch."""


@dataclass(frozen=True, slots=True)
class Box:
    """``height`` runs of ``width`` bytes, ``to_pitch`` bytes apart in the target and ``from_pitch`` in the source."""

    width: int
    height: int
    to_pitch: int
    from_pitch: int


class box_copies(TorchFunctionMode):  # noqa: N801  # a context manager
    """A context in which ``gpu_tensor.copy_(columns)`` is one copy of the driver, if ``columns`` are page-locked.

    As torch does, it waits until the bytes have arrived.
    """

    def __init__(self) -> None:
        super().__init__()
        self._driver = Driver()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or copy a box in its place."""
        if func is torch.Tensor.copy_ and len(args) == 2 and not kwargs:
            to, source = args
            if _is_between(to, source) and (box := box_between(to, source)) is not None:
                stream = torch.cuda.current_stream(to.device)
                pitches = (box.to_pitch, source.data_ptr(), box.from_pitch)
                self._driver.box(to.data_ptr(), *pitches, box.width, box.height, stream.cuda_stream)
                stream.synchronize()
                return to
        return func(*args, **(kwargs or {}))


def _is_between(to: Any, source: Any) -> bool:
    """Whether a copy goes from page-locked memory to the GPU that this thread uses."""
    return (
        isinstance(source, torch.Tensor)
        and to.is_cuda
        and to.device.index == torch.cuda.current_device()
        and source.device.type == "cpu"
        and source.is_pinned()
    )


def box_between(to: torch.Tensor, source: torch.Tensor) -> Box | None:
    """Return the box that copies ``source`` to ``to``; None if the bytes are no box of several runs, or must be converted.

    >>> box_between(torch.empty(512, 100), torch.empty(512, 300)[:, 200:])
    Box(width=400, height=512, to_pitch=400, from_pitch=1200)
    """
    if to.dtype != source.dtype or to.shape != source.shape or source.nbytes < LEAST_BYTES:
        return None
    runs, places = _runs(source), _runs(to)
    if runs is None or places is None:
        return None
    (width, height, from_pitch), (run, count, to_pitch) = runs, places
    if height == 1 or (count > 1 and run != width):
        return None
    return Box(width, height, to_pitch if count > 1 else width, from_pitch)


def _runs(tensor: torch.Tensor) -> tuple[int, int, int] | None:
    """Return the bytes of a run, how many runs, and the bytes from run to run; None if these differ."""
    dims = [
        (n, stride * tensor.element_size()) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1
    ]
    width = tensor.element_size()
    while dims and dims[-1][1] == width:
        width *= dims.pop()[0]
    if not dims:
        return width, 1, width
    height, pitch = dims.pop()
    while dims and dims[-1][1] == height * pitch:
        height *= dims.pop()[0]
    return None if dims or pitch < width else (width, height, pitch)
