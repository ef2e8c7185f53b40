"""Keeps the headers of remote shards on disk, by what names their content, so that the next plan need not read them again.

Each entry is a separate file, with the SHA-256 of what follows: a damaged entry is removed and read again. Entries are
written elsewhere and renamed, so processes can share the folder. The oldest are removed when it becomes too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

MOST_BYTES = 2**29
"""The size to which the cache may grow: the headers of about 30 models of 700 billion parameters."""
_MAGIC = b"loadmaster header 1\n"


def cache_folder(what: str) -> Path:
    """Return the usual folder of one kind of what is kept: ``loadmaster/WHAT`` in ``XDG_CACHE_HOME``, or in ``~/.cache``.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "loadmaster" / what


class HeaderCache:
    """Headers by a text that names their file's content. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._has_written = False
        self.error: OSError | None = None
        """Why the last entry could not be written; the cache is only a convenience, so nothing is raised."""

    def get(self, key: str) -> bytes | None:
        """Return a header; None where it is not kept, or its entry is damaged."""
        path = self._path(key)
        try:
            entry = path.read_bytes()
        except OSError:
            return None
        text = entry[len(_MAGIC) + 32 :]
        if entry[: len(_MAGIC)] != _MAGIC or entry[len(_MAGIC) : len(_MAGIC) + 32] != hashlib.sha256(text).digest():
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the oldest are removed first
        return text

    def put(self, key: str, text: bytes) -> None:
        """Keep a header."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(text).digest() + text)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            self.error = error
            return
        self._has_written = True

    def trim(self) -> None:
        """Remove the oldest entries where the cache, after this process wrote to it, is larger than it may be."""
        if not self._has_written:
            return
        entries: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*/*"):  # another process may remove the same entries
            with contextlib.suppress(OSError):
                entries.append(((stat := path.stat()).st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._most_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / name[:2] / name[2:]
