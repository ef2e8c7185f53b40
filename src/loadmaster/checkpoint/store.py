"""Stores read byte ranges of named files. The local one is here; remote ones implement the same protocol."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from loadmaster.errors import LoadError

MAX_BUFFERS = 1024
"""Buffers that one preadv takes (IOV_MAX on Linux)."""


class Store(Protocol):
    """Named files of bytes. Safe to call from several threads."""

    def names(self) -> Sequence[str]:
        """Return the files' names."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    def stamp(self, name: str) -> tuple[int, int]:
        """Return what changes when a file does: its size in bytes, and its time stamp in nanoseconds."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``.

        Raises:
            LoadError: the file ends before that; names file and offset.
        """

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers``, one after another, with the bytes from ``start`` on.

        Raises:
            LoadError: the file ends before that; names file and offset.
        """


class LocalStore:
    """A folder's files, each opened once, read with ``preadv``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def names(self) -> list[str]:
        """Return the names of the folder's files."""
        return sorted(p.name for p in self._folder.iterdir() if p.is_file())

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return (self._folder / name).stat().st_size

    def stamp(self, name: str) -> tuple[int, int]:
        """Return a file's size in bytes and its modification time in nanoseconds."""
        stat = (self._folder / name).stat()
        return stat.st_size, stat.st_mtime_ns

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._open:
                self._open[name] = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[name]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``; see `Store`."""
        data = bytearray(length)
        self.readinto(name, start, [memoryview(data)])
        return bytes(data)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` with the bytes from ``start`` on; see `Store`."""
        descriptor = self._descriptor(name)
        left = [b for b in buffers if b.nbytes]
        while left:
            got = os.preadv(descriptor, left[:MAX_BUFFERS], start)
            if got == 0:
                wanted = sum(b.nbytes for b in left)
                raise LoadError(f"{name} ends at byte {start:,}, and {wanted:,} more bytes were expected there")
            start += got
            done = 0
            while done < len(left) and got >= left[done].nbytes:
                got -= left[done].nbytes
                done += 1
            left = left[done:]
            if got:
                left[0] = left[0][got:]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
