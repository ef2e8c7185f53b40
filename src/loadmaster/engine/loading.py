"""How far the loading of each rank is, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RankProgress:
    """The bytes of its plan that a rank has loaded, and those that it loads in all."""

    rank: int
    stage: int
    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Loading:
    """All ranks, and the seconds since the first of them began; after the end, the seconds that loading took."""

    ranks: tuple[RankProgress, ...]
    seconds: float

    @property
    def loaded_bytes(self) -> int:
        """Bytes loaded so far, of all ranks."""
        return sum(r.loaded_bytes for r in self.ranks)

    @property
    def total_bytes(self) -> int:
        """Bytes to load, of all ranks."""
        return sum(r.total_bytes for r in self.ranks)

    @property
    def bytes_per_s(self) -> float:
        """The mean rate so far; 0 at the start."""
        return self.loaded_bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the mean rate; None while nothing is loaded.

        >>> Loading((RankProgress(0, 0, 30, 100), RankProgress(1, 1, 50, 100)), seconds=4).seconds_left
        6.0
        """
        rate = self.bytes_per_s
        return (self.total_bytes - self.loaded_bytes) / rate if rate else None

    def __str__(self) -> str:
        """Say it in one line.

        >>> str(Loading((RankProgress(0, 0, 3 * 10**9, 12 * 10**9),), seconds=2.0))
        '3.0 of 12.0 GB, 1.50 GB/s, 6 s left'
        """
        done, total, rate = (n / 1e9 for n in (self.loaded_bytes, self.total_bytes, self.bytes_per_s))
        left = "" if self.seconds_left is None else f", {math.ceil(self.seconds_left)} s left"
        return f"{done:.1f} of {total:.1f} GB, {rate:.2f} GB/s{left}"


class LoadProgress:
    """Adds up the bytes that ranks report. ``total_bytes`` and ``stages`` are those of each rank, in order."""

    def __init__(self, total_bytes: Sequence[int], stages: Sequence[int]) -> None:
        self._total, self._stages = tuple(total_bytes), tuple(stages)
        self._loaded = [0] * len(self._total)
        self._began = time.monotonic()
        self._ended: float | None = None

    def add(self, rank: int, num_bytes: int) -> None:
        """Add bytes that a rank has loaded."""
        self._loaded[rank] += num_bytes

    def finish(self) -> None:
        """Stop the clock: all ranks are loaded."""
        self._ended = time.monotonic()

    def now(self) -> Loading:
        """Return how far loading is. May be called from any thread."""
        ranks = zip(self._stages, self._loaded, self._total, strict=True)
        until = time.monotonic() if self._ended is None else self._ended
        return Loading(tuple(RankProgress(i, *rank) for i, rank in enumerate(ranks)), until - self._began)
