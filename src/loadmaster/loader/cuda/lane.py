"""Per-thread state for loading onto GPUs: slots of page-locked memory, and a stream on each device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from loadmaster.loader.cuda.driver import Driver

PHASES: Final = ("read", "wait", "issue", "operate")
"""What a thread spends its time on, in seconds: attributes of a lane."""


class Slot:
    """Page-locked memory that is filled from a file, then copied to devices. Made by the thread that uses it.

    ``streams`` are the streams of its copies, one for each device.
    """

    def __init__(
        self,
        driver: Driver,
        devices: Sequence[torch.device],
        streams: Sequence[torch.cuda.Stream],
        address: int,
        memory: memoryview,
    ) -> None:
        self.address, self.memory = address, memory
        self.streams = [s.cuda_stream for s in streams]
        self._driver = driver
        self._events: list[int] = []  # by device
        for device in devices:
            torch.cuda.set_device(device)
            self._events.append(driver.event())
        self._waiting: list[int] = []

    def copied(self, device: int) -> None:
        """Record that copies which are on the stream of a device (by index) now may read the slot."""
        event = self._events[device]
        self._driver.record(event, self.streams[device])
        if event not in self._waiting:
            self._waiting.append(event)

    def is_free(self) -> bool:
        """Return whether all copies from the slot are done."""
        if all(map(self._driver.is_done, self._waiting)):
            self._waiting.clear()
            return True
        return False

    def wait(self) -> None:
        """Wait until all copies from the slot are done."""
        for event in self._waiting:
            self._driver.wait(event)
        self._waiting.clear()

    def close(self) -> None:
        """Destroy the events. No copy may be under way."""
        for event in self._events:
            self._driver.destroy(event)
        self._events.clear()
        self._waiting.clear()


class Lane:
    """Slots that are taken in turns. ``most`` copies are in the largest batch.

    All copies to a device go on one stream; several were no faster (benchmarks/sweep_gpu.py).
    """

    def __init__(
        self,
        driver: Driver,
        devices: Sequence[torch.device],
        slots: Sequence[tuple[int, memoryview]],
        most: int,
    ) -> None:
        self._devices = devices
        self.torch_streams = [torch.cuda.Stream(d) for d in devices]
        self.slots = [Slot(driver, devices, self.torch_streams, address, memory) for address, memory in slots]
        torch.cuda.set_device(devices[0])  # the driver wants a thread to have a device
        self._turn = 0
        self._scratch: dict[int, torch.Tensor] = {}
        self.sources = np.empty(most, dtype=np.int64)
        self.sources_address = int(self.sources.ctypes.data)
        self.read = self.wait = self.issue = self.operate = 0.0

    def take(self) -> Slot:
        """Return the next slot, when the copies from it are done."""
        self._turn = (self._turn + 1) % len(self.slots)
        slot = self.slots[self._turn]
        begin = time.perf_counter()
        slot.wait()
        self.wait += time.perf_counter() - begin
        return slot

    def scratch(self, device: int, num_bytes: int) -> torch.Tensor:
        """Return memory on a device ``[num_bytes]``, used in the order of the lane's stream there."""
        if device not in self._scratch:
            with torch.cuda.stream(self.torch_streams[device]):
                self._scratch[device] = torch.empty(num_bytes, dtype=torch.uint8, device=self._devices[device])
        return self._scratch[device]

    def close(self) -> None:
        """Free events and memory. No copy may be under way."""
        for slot in self.slots:
            slot.close()
        self._scratch.clear()
