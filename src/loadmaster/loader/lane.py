"""What one reader has to itself while it loads onto devices: its slots, and on each device a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from loadmaster.loader.driver import Driver

PHASES: Final = ("read", "wait", "issue", "operate")
"""What a reader spends its time on, in seconds: attributes of a lane."""


class Lane:
    """Slots taken in turns. Made by the thread that uses it; ``most`` copies are in the largest batch."""

    def __init__(
        self, driver: Driver, devices: Sequence[torch.device], slots: Sequence[tuple[int, memoryview]], most: int
    ) -> None:
        self._driver = driver
        self._devices = devices
        self._slots = slots
        self._events: list[list[int]] = [[] for _ in slots]  # by slot and device
        self._waiting: list[list[int]] = [[] for _ in slots]  # events of copies that still read from a slot
        self._turn = 0
        self.torch_streams = [torch.cuda.Stream(d) for d in devices]
        self.streams = [s.cuda_stream for s in self.torch_streams]
        for device in reversed(devices):  # the driver wants a thread to have a device: the first, after this
            torch.cuda.set_device(device)
            for events in self._events:
                events.insert(0, driver.event())
        self._scratch: dict[int, torch.Tensor] = {}
        self.sources = np.empty(most, dtype=np.int64)
        self.sources_address = int(self.sources.ctypes.data)
        self.read = self.wait = self.issue = self.operate = 0.0

    def take(self) -> tuple[int, memoryview]:
        """Return address and memory of the next slot, once the copies from it are done."""
        self._turn = turn = (self._turn + 1) % len(self._slots)
        if waiting := self._waiting[turn]:
            begin = time.perf_counter()
            for event in waiting:
                self._driver.wait(event)
            waiting.clear()
            self.wait += time.perf_counter() - begin
        return self._slots[turn]

    def issued(self, device: int) -> None:
        """Remember that the slot in hand is read by all that is on the stream of a device (its index here) by now."""
        event = self._events[self._turn][device]
        self._driver.record(event, self.streams[device])
        if event not in self._waiting[self._turn]:
            self._waiting[self._turn].append(event)

    def scratch(self, device: int, num_bytes: int) -> torch.Tensor:
        """Return memory on a device ``[num_bytes]``, used in the order of the lane's stream there."""
        if device not in self._scratch:
            with torch.cuda.stream(self.torch_streams[device]):
                self._scratch[device] = torch.empty(num_bytes, dtype=torch.uint8, device=self._devices[device])
        return self._scratch[device]

    def close(self) -> None:
        """Give the events back. No copy may be under way."""
        for event in (e for events in self._events for e in events):
            self._driver.destroy(event)
        self._events.clear()
        self._scratch.clear()
