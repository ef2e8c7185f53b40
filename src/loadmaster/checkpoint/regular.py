"""Opens files of a folder that is not trusted: regular files, and nothing else.

Reading a FIFO waits for a writer, a device never ends, a terminal waits for a user. Links are followed: the hub's cache
consists of them.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from loadmaster.limits import Limit, LimitError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str | None:
    """Return what a file of this mode is; None for a regular file.

    >>> kind_of(stat.S_IFIFO), kind_of(stat.S_IFREG)
    ('a FIFO', None)
    """
    return next((what for is_kind, what in _KINDS if is_kind(mode)), None)


def open_regular(path: Path, flags: int = 0) -> int:
    """Return a descriptor of a regular file, open for reading; links are followed.

    The kind is checked before opening, since opening a device may have an effect, and again afterwards.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    _check(os.stat(path).st_mode)  # noqa: PTH116 (a plain call, once for each shard)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    try:
        _check(os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)  # without this, asynchronous reads fail where the page cache has no data
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(mode: int) -> None:
    if (what := kind_of(mode)) is not None:
        raise OSError(errno.EINVAL, f"it is {what}, not a regular file")


def read_regular(path: Path, limit: Limit) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        LimitError: it has more bytes.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        text = file.read(limit.value + 1)
        size = max(os.fstat(file.fileno()).st_size, len(text))
    if len(text) > limit.value:
        raise LimitError(limit, size)
    return text


def is_there(path: Path) -> bool:
    """Return whether a path exists, even as a broken link."""
    return os.path.lexists(path)
