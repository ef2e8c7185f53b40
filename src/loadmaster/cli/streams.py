"""Standard output and standard error of a command: always open, with their failures told apart.

A failure to write standard output ends a command, because its answer is lost: `OutputError`. A failure to write standard
error is ignored. Characters that a stream's encoding lacks are written as escapes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 2**16
"""Columns of a stream that is no terminal, so that nothing is wrapped or shortened and one record is one line."""


class OutputError(OSError):
    """Standard output cannot be written."""


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error.errno, error.strerror) from error


class _Errors(io.FileIO):
    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Replace the process's streams. A closed one is opened first; otherwise the next opened file would get its number."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):  # 1: writing must still fail
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, flags)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    for name, number, raw in (("stdout", 1, _Output), ("stderr", 2, _Errors)):
        old = getattr(sys, name)
        if old is not None:
            with contextlib.suppress(OSError):
                old.flush()
        new = io.TextIOWrapper(
            io.BufferedWriter(raw(number, "wb", closefd=False)),
            encoding=old.encoding if old is not None else "utf-8",
            errors="backslashreplace",
            line_buffering=number == 2 or os.isatty(number),
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def flush() -> None:
    """Write buffered standard output.

    Raises:
        OutputError: writing failed.
    """
    sys.stdout.flush()


def give_up_output() -> None:
    """Discard buffered standard output; otherwise the interpreter would try to write it again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    """Return rich's console for a stream."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE)
