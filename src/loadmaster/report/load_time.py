"""Prints a predicted load time, and turns it into the JSON object of ``plan --json``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from rich.console import Console

from loadmaster.findings import gib, ranges
from loadmaster.report.console import say
from loadmaster.sizing.load_time import ASSUMPTIONS, LoadTime

MOST_LINES = 16
"""Hosts that are listed one by one."""


def load_time_object(time: LoadTime) -> dict[str, Any]:
    """Return the object of a predicted load; sizes are bytes."""
    return {
        **dataclasses.asdict(time.rates),
        "seconds": time.seconds,
        "amplification": time.amplification,
        "needed_bytes": time.needed_bytes,
        "host_bytes": list(time.host_bytes),
        "assumptions": list(ASSUMPTIONS),
        "ranks": [dataclasses.asdict(r) for r in time.ranks],
    }


def print_load_time(console: Console, time: LoadTime) -> None:
    """Print the seconds of each host, what limits them, and the assumptions."""
    rates = time.rates
    link = f", link {rates.link_bytes_per_s / 1e9:g} GB/s" if rates.link_bytes_per_s else ""
    say(
        console,
        f"loading takes about {_seconds(time.seconds)}: storage {rates.storage_bytes_per_s / 1e9:g} GB/s a host{link}; read "
        f"{gib(sum(time.host_bytes))} for {gib(time.needed_bytes)} needed (× {time.amplification:.2f})",
    )
    for host, num_bytes in enumerate(time.host_bytes[:MOST_LINES]):
        mine = [r for r in time.ranks if r.host == host]
        (bottleneck, _), *_ = Counter(r.bottleneck for r in mine).most_common()
        last = max(mine, key=lambda r: r.seconds)
        say(
            console,
            f"  host {host}, ranks {ranges(r.rank for r in mine)}: {gib(num_bytes)} read, {_seconds(last.seconds)}, limited by "
            f"its {bottleneck}",
        )
    if len(time.host_bytes) > MOST_LINES:
        say(console, f"  … and {len(time.host_bytes) - MOST_LINES} more hosts")
    say(console, f"assumed: {'; '.join(ASSUMPTIONS)}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
