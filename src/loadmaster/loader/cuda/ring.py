"""Page-locked host memory in slots, through which bytes go from file to device."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch

from loadmaster.checkpoint.store import DIRECT_ALIGNMENT
from loadmaster.loader.cuda.page_lock import page_lock, page_unlock

SLOT_BYTES: Final = 4 * 2**20
"""Of one read. Larger ones fall out of the processor's cache before the device has fetched them."""

SLOTS_PER_READER: Final = 2
"""One is filled while the other is copied."""

READERS_PER_DEVICE: Final = 12
"""As many fill a link from the page cache; the slots of more fall out of the processor's cache (benchmarks/sweep_gpu.py)."""


def device_readers(num_devices: int = 1) -> int:
    """Return how many readers to use: 12 for each device, at most one for each core, less two for other work."""
    return max(min((os.cpu_count() or 1) - 2, READERS_PER_DEVICE * num_devices), 1)


class Ring:
    """``num_slots`` slots of ``slot_bytes`` each, and room for what direct I/O reads before and after.

    A background thread page-locks the memory, which takes 0.1 s; `ready` waits for it. One ring can be used for many loads,
    one after another; `close` frees the memory. ``device`` is a GPU that this process uses: without it the thread would begin
    to use the first one, which takes memory there.
    """

    def __init__(self, num_slots: int, slot_bytes: int = SLOT_BYTES, device: torch.device | None = None) -> None:
        if num_slots < SLOTS_PER_READER:
            raise ValueError(f"a ring of {num_slots} slot(s): a reader takes {SLOTS_PER_READER}")
        self.num_slots, self.slot_bytes = num_slots, slot_bytes
        self._stride = slot_bytes + 2 * DIRECT_ALIGNMENT
        self.num_bytes = num_slots * self._stride
        self._memory = mmap.mmap(-1, self.num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._address = int(self._bytes.ctypes.data)
        pool = ThreadPoolExecutor(1, thread_name_prefix="ring")
        self._locking: Future[bool] = pool.submit(self._lock, device)
        pool.shutdown(wait=False)

    def _lock(self, device: torch.device | None) -> bool:
        if device is not None:
            torch.cuda.set_device(device)
        self._bytes[:: mmap.PAGESIZE] = 0  # pages are made here, huge ones where there are any
        page_lock(self._address, self.num_bytes)
        return True

    def ready(self) -> Ring:
        """Wait until the memory is page-locked, and return the ring.

        Raises:
            LoadError: it cannot be page-locked.
        """
        self._locking.result()
        return self

    def slot(self, number: int) -> tuple[int, memoryview]:
        """Return the address and the memory of a slot."""
        start = number * self._stride
        return self._address + start, memoryview(self._memory)[start : start + self._stride]

    def close(self) -> None:
        """Free the memory. No copy may be under way."""
        if self._locking.exception() is None and self._locking.result():
            page_unlock(self._address)
        self._locking = Future()
        self._locking.set_result(False)

    def __enter__(self) -> Ring:
        return self.ready()

    def __exit__(self, *error: object) -> None:
        self.close()
