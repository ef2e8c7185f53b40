"""Checks that files are still those whose headers were read: before a loader reads the first byte, and after the last."""

from __future__ import annotations

from collections.abc import Iterable

from loadmaster.checkpoint.columns import ShardFile
from loadmaster.checkpoint.store import Store
from loadmaster.errors import LoadError


def check_unchanged(store: Store, files: Iterable[ShardFile], *, since: str, hint: str, where: str = "") -> None:
    """Compare size and time stamp of files with what they were when their headers were read.

    ``where`` begins the message of an error (``rank 3: ``), ``since`` says what happened then, ``hint`` what to do.

    Raises:
        LoadError: a file changed, or cannot be read; names it.
    """
    for file in files:
        try:
            size, _ = stamp = store.stamp(file.name)
        except OSError as error:
            raise LoadError(f"{where}{file.name}: {error.strerror or error}") from error
        if stamp != (file.size, file.mtime_ns):
            change = f"{file.size:,} bytes then, {size:,} bytes now"
            raise LoadError(f"{where}{file.name} changed since {since}: {change}", hint=hint)
