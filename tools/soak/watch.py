"""Samples the memory and the file descriptors of a server's processes, and says whether they grow."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

GROWTH_MIB: Final = 12.0
"""By how much the memory of a process may differ between the beginning and the end: allocators keep what they may need again."""

GROWTH_SHARE: Final = 0.03
"""The same as a share of its memory; the larger of both counts."""

GROWTH_FDS: Final = 3.0
"""The same for file descriptors, with as many clients at both times."""

CURVE_POINTS: Final = 8
"""How many samples, at equal distances, a report shows: does memory still grow, or did it stop?"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process has at a time: seconds, MiB of resident memory, file descriptors."""

    at: float
    rss_mib: float
    num_fds: int


@dataclass(slots=True)
class Watched:
    """A process and its samples."""

    name: str
    process: psutil.Process
    samples: list[Sample] = field(default_factory=list)

    def sample(self) -> None:
        """Take a sample, if the process still runs."""
        try:
            self.samples.append(
                Sample(time.monotonic(), self.process.memory_info().rss / 2**20, self.process.num_fds())
            )
        except psutil.NoSuchProcess:
            return


def processes_of(pid: int) -> list[Watched]:
    """Return the server's process and all that it started."""
    server = psutil.Process(pid)
    return [Watched("server", server)] + [
        Watched(f"{number} {_role(child)}", child) for number, child in enumerate(server.children(recursive=True), 1)
    ]


def _role(process: psutil.Process) -> str:
    modules = [part.rsplit(".", 1)[-1] for part in process.cmdline() if part.startswith("loadmaster.")]
    return modules[0] if modules else str(process.name())


async def watch(processes: Sequence[Watched], every_s: float) -> None:
    """Take samples until the task is cancelled."""
    while True:
        for process in processes:
            process.sample()
        await asyncio.sleep(every_s)


def report(process: Watched, since: float) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a process after a warm-up that ended at ``since``, and what grew.

    The first and last quarters of the time are compared by their medians, and the slope of all samples by least squares.
    """
    samples = [s for s in process.samples if s.at >= since]
    if len(samples) < 8:
        return {"samples": len(samples)}, [
            f"{process.name}: only {len(samples)} samples; it ended, or the soak is too short"
        ]
    quarter = len(samples) // 4
    first, last = samples[:quarter], samples[-quarter:]
    rss = [statistics.median(s.rss_mib for s in part) for part in (first, last)]
    fds = [statistics.median(s.num_fds for s in part) for part in (first, last)]
    slope, _ = statistics.linear_regression([s.at for s in samples], [s.rss_mib for s in samples])
    curve = [round(samples[len(samples) * i // CURVE_POINTS].rss_mib, 1) for i in range(CURVE_POINTS)]
    figures = {
        "rss_mib": [round(r, 1) for r in rss],
        "mib_per_hour": round(slope * 3600, 2),
        "fds": fds,
        "rss_mib_over_time": curve,
    }
    grown = []
    if rss[1] - rss[0] > max(GROWTH_MIB, GROWTH_SHARE * rss[0]):
        grown.append(f"{process.name}: memory grew from {rss[0]:.1f} to {rss[1]:.1f} MiB")
    if fds[1] - fds[0] > GROWTH_FDS:
        grown.append(f"{process.name}: file descriptors grew from {fds[0]:.0f} to {fds[1]:.0f}")
    return figures, grown
