"""A progress bar in bytes, with rate and time left, on standard error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from loadmaster.findings import gib

LINE_EVERY_S = 30.0
"""Seconds between two lines about a download, for logs."""


class ByteProgress:
    """Shows how many of the bytes are done, on a terminal only. `advance` may be called from any thread."""

    def __init__(self, total: int, what: str) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not Console(stderr=True).is_terminal,
        )
        self.is_shown = not self._progress.disable
        """Whether there is a terminal."""
        self._task = self._progress.add_task(what, total=total)
        self._lock = threading.Lock()

    def advance(self, num_bytes: int) -> None:
        """Report that more bytes are done."""
        with self._lock:
            self._progress.advance(self._task, num_bytes)

    def __enter__(self) -> ByteProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class DownloadProgress:
    """Shows how much was downloaded, from the first report on: a bar of bytes, or a line now and then where there is no terminal.

    An interruption says how to continue.
    """

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what = what
        self._say = say
        self._bar: ByteProgress | None = None
        self._done = 0
        self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes were downloaded."""
        if self._bar is None:
            self._bar = ByteProgress(total, self._what)
            self._bar.__enter__()
            self._said = time.monotonic()
        self._bar.advance(done - self._done)
        self._done = done
        if not self._bar.is_shown and time.monotonic() - self._said >= LINE_EVERY_S:
            self._say(f"{self._what}: {gib(done)} of {gib(total)}")
            self._said = time.monotonic()

    def __enter__(self) -> DownloadProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
            if kind is KeyboardInterrupt:
                self._say("interrupted: run the same command to continue")
