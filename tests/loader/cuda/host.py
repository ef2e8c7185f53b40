"""The host in place of GPUs: memory for memory, copies by address, and no waiting. For machines that have none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loadmaster.loader.cuda import load, transfer
from loadmaster.loader.cuda.lane import Lane
from loadmaster.loader.memory import DeviceArena, _places, _views


class HostDriver:
    """What `loadmaster.loader.cuda.driver.Driver` does, at once."""

    has_batches = True

    def __init__(self) -> None:
        self.events = 0

    def connect(self, devices: Sequence[torch.device]) -> None:
        pass

    def event(self) -> int:
        self.events += 1
        return self.events

    def record(self, event: int, stream: int) -> None:
        assert event > 0

    def is_done(self, event: int) -> bool:
        return True

    def wait(self, event: int) -> None:
        pass

    def destroy(self, event: int) -> None:
        self.events -= 1

    def to_device(self, to: int, source: int, num_bytes: int, stream: int) -> None:
        ctypes.memmove(to, source, num_bytes)

    between = to_device

    def batch(self, to: int, sources: int, sizes: int, count: int, stream: int) -> None:
        columns = [np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(a)) for a in (to, sources, sizes)]
        for where, source, size in zip(*(c.tolist() for c in columns), strict=True):
            ctypes.memmove(where, source, size)

    def box(self, to: int, to_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int) -> None:
        for row in range(height):
            ctypes.memmove(to + row * to_pitch, source + row * source_pitch, width)


def _allocated(self: DeviceArena, specs: Sequence[Any], device: torch.device, rank: int) -> dict[str, torch.Tensor]:
    offsets, size = _places(specs)
    return _views(specs, offsets, torch.empty(size, dtype=torch.uint8))


def _scratch(self: Lane, device: int, num_bytes: int) -> torch.Tensor:
    made: torch.Tensor = self._scratch.setdefault(device, torch.empty(num_bytes, dtype=torch.uint8))
    return made


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``cuda:0`` and ``cuda:1`` be the host."""
    monkeypatch.setattr(transfer, "Driver", HostDriver)
    monkeypatch.setattr(load, "_device", torch.device)
    monkeypatch.setattr(DeviceArena, "_allocated", _allocated)
    monkeypatch.setattr(Lane, "scratch", _scratch)
    cuda = {
        "Stream": lambda device: SimpleNamespace(cuda_stream=0),
        "stream": lambda stream: nullcontext(),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "cudart": lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda *_: 0),
    }
    for name, double in cuda.items():
        monkeypatch.setattr(torch.cuda, name, double)
