"""A progress bar of the headers that are read from a remote place."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class HeaderProgress:
    """Shows how many headers were read; on a terminal only, and only once there is something to show."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` headers were read."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("headers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            self._progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
            self._progress.add_task("headers")
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)
        if done == total:
            self._stop()  # a download that follows shows another bar

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> HeaderProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
