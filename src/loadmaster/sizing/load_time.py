"""How long loading takes: predicted for each rank from the bytes of the plan and the rates of storage and links.

Assumptions, which reports print: the ranks of a host share its storage, and each byte leaves it once (readers and the page cache
share what several ranks need); every device has its own link, of which a load reaches `LINK_SHARE`; reading and sending overlap,
so the slower of the two is what counts; decoding on the way costs nothing; preparing takes `PREPARE_S`. Headers, planning and the
start of processes are not counted. ``benchmarks/load_time_gpu.py`` measures how far off that is.

A host reads of a stage what its ranks need. If it has all of the stage's ranks that is the stage's stored bytes; otherwise it
is no more than that, and no more than what its ranks fetch: of rows that are cut, every rank reads the whole span.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loadmaster.errors import ConfigError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import RankFigures

LINK_SHARE: Final = 0.87
"""The part of a link's rate, as copies of page-locked memory reach it, that a load reaches: 48 of 55 GB/s on an H200, where
the page cache is faster than the link."""

PREPARE_S: Final = 0.1
"""Seconds to lay a plan out in tasks, allocate, and page-lock the first buffers: 0.09 on the same machine."""

ASSUMPTIONS: Final = (
    "the ranks of a host share its storage, and each byte leaves it once",
    f"every device has its own link, and a load reaches {LINK_SHARE:.0%} of its rate; reading and sending overlap",
    f"{PREPARE_S} s to prepare; process start, headers, planning and decoding are not counted",
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second: of the storage that each host reads from, and of the link to each device. ``hosts`` share the ranks evenly,
    in order."""

    storage_bytes_per_s: float
    link_bytes_per_s: float | None = None
    hosts: int = 1


@dataclass(frozen=True, slots=True)
class RankTime:
    """One rank's part of a load, and the seconds after which it has everything."""

    rank: int
    host: int
    bytes_to_device: int
    seconds: float
    bottleneck: Literal["storage", "link"]


@dataclass(frozen=True)
class LoadTime:
    """``host_bytes`` are read by each host; ``needed_bytes`` are the stored bytes that any rank needs, counted once."""

    rates: Rates
    ranks: tuple[RankTime, ...]
    host_bytes: tuple[int, ...]
    needed_bytes: int

    @property
    def seconds(self) -> float:
        """When the last rank has everything."""
        return max(r.seconds for r in self.ranks)

    @property
    def amplification(self) -> float:
        """Bytes read by all hosts over bytes needed."""
        return sum(self.host_bytes) / max(1, self.needed_bytes)


def load_time(layout: ParallelLayout, ranks: Sequence[RankFigures], rates: Rates) -> LoadTime:
    """Predict a load. ``ranks`` are the figures of all ranks of a proof.

    Raises:
        ConfigError: there are more hosts than ranks, or the ranks do not divide over them.
    """
    if rates.hosts > len(ranks) or len(ranks) % rates.hosts:
        raise ConfigError(f"--hosts {rates.hosts}: {len(ranks)} ranks do not divide over them evenly")
    per_host = len(ranks) // rates.hosts
    unique: dict[int, int] = defaultdict(int)  # stage -> its stored bytes, each once
    for r in ranks:
        unique[r.pp_rank] += r.needed_bytes - r.replica_bytes
    host_bytes = []
    for host in range(rates.hosts):
        fetched: dict[int, dict[int, int]] = defaultdict(dict)  # stage -> stage slot -> bytes
        for r in ranks[host * per_host : (host + 1) * per_host]:
            fetched[r.pp_rank][layout.coordinate(r.rank).stage_slot] = r.fetched_bytes
        host_bytes.append(sum(_read(unique[stage], slots, layout.stage_size) for stage, slots in fetched.items()))
    times = []
    for r in ranks:
        host = r.rank // per_host
        storage_s = host_bytes[host] / rates.storage_bytes_per_s
        link_s = r.needed_bytes / (LINK_SHARE * rates.link_bytes_per_s) if rates.link_bytes_per_s else 0.0
        bottleneck: Literal["storage", "link"] = "storage" if storage_s >= link_s else "link"
        times.append(RankTime(r.rank, host, r.needed_bytes, PREPARE_S + max(storage_s, link_s), bottleneck))
    return LoadTime(rates, tuple(times), tuple(host_bytes), sum(unique.values()))


def _read(stage_bytes: int, fetched: dict[int, int], stage_size: int) -> int:
    """Return what a host reads of a stage of which it has some slots."""
    return stage_bytes if len(fetched) == stage_size else min(stage_bytes, sum(fetched.values()))
