"""What each worker is doing now, in memory that the supervisor can read without asking it: a hung worker answers nothing.

The memory has no name. It has two numbers for each rank: the batch that it works on, and its phase.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from enum import IntEnum
from pathlib import Path

NUMBER_BYTES = 8


class Phase(IntEnum):
    """What a worker is doing."""

    IDLE = 0  # it waits for a batch, or loads
    RECEIVING = 1  # it waits for another rank
    COMPUTING = 2


class Pulse:
    """The numbers of ``num_ranks`` ranks, in the file ``fd``, which `create` makes and workers inherit."""

    def __init__(self, fd: int, num_ranks: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, max(num_ranks, 1) * 2 * NUMBER_BYTES)
        self._numbers = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls, num_ranks: int) -> Pulse:
        """Return the numbers of all ranks, zero, in a new file without a name."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("loadmaster-pulse")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, max(num_ranks, 1) * 2 * NUMBER_BYTES)
        return cls(fd, num_ranks)

    def set(self, rank: int, phase: Phase, batch: int = 0) -> None:
        """Say what a rank is doing. Called by its worker alone."""
        self._numbers[2 * rank] = batch
        self._numbers[2 * rank + 1] = phase

    def set_phase(self, rank: int, phase: Phase) -> None:
        """Say that a rank, with the same batch, is doing something else. Called by its worker alone."""
        self._numbers[2 * rank + 1] = phase

    def get(self, rank: int) -> tuple[Phase, int]:
        """Return what a rank is doing, and with which batch."""
        return Phase(self._numbers[2 * rank + 1]), self._numbers[2 * rank]

    def close(self) -> None:
        """Close the file and the memory."""
        self._numbers.release()
        self._memory.close()
        os.close(self.fd)


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float | None:
    """Return the CPU time that a process has used, or None where the system does not say, or the process has ended."""
    try:
        fields = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)
    except (OSError, ValueError, IndexError):
        return None
