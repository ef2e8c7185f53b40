"""Reads byte ranges of named files: the protocol `Store`, and `LocalStore` for a folder on disk."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from loadmaster.checkpoint.partial import Coverage, PartialPaths
from loadmaster.checkpoint.regular import open_regular
from loadmaster.errors import LoadError

DIRECT_ALIGNMENT = 4096
"""Bytes; the offset, length and address of a direct I/O read are multiples of it."""

PULL = "`loadmaster pull` gets them, with the same --local-dir"
"""What to do about bytes that a partial copy lacks."""

MAX_BUFFERS = 1024
"""Most buffers of one preadv (IOV_MAX on Linux)."""


def read_nothing_ahead(descriptor: int) -> None:
    """Turn off readahead, where the system supports it."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


class Store(Protocol):
    """Named files of bytes. Safe to call from several threads."""

    def names(self) -> Sequence[str]:
        """Return the files' names."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    def stamp(self, name: str) -> tuple[int, int]:
        """Return two numbers that change when the file does: size in bytes, time stamp in nanoseconds."""

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
    """A folder's files, each opened once, read with ``preadv``.

    Without ``readahead`` the system reads from disk only the requested bytes, which is better for reading parts of files.
    """

    def __init__(self, folder: Path, *, readahead: bool = True) -> None:
        self._folder = folder
        self._partial = PartialPaths(folder)
        self._readahead = readahead
        self._lock = threading.Lock()
        self._open: dict[tuple[str, bool], int] = {}
        self._is_closed = False

    def names(self) -> list[str]:
        """Return the names of the folder's files."""
        return self._partial.names(sorted(p.name for p in self._folder.iterdir() if p.is_file()))

    @property
    def coverage(self) -> Coverage | None:
        """What a partial copy has; None where the folder is none, and everything can be read."""
        return self._partial.coverage

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return self._partial.path(name).stat().st_size

    def stamp(self, name: str) -> tuple[int, int]:
        """Return a file's size in bytes and its modification time in nanoseconds; see `PartialPaths.stamp`."""
        return self._partial.stamp(name, self._partial.path(name).stat())

    def descriptor(self, name: str, *, direct: bool = False) -> int:
        """Return the descriptor of a file, open for reading until the store is closed.

        With ``direct`` it bypasses the page cache; then offset, length and address of a read are multiples of
        `DIRECT_ALIGNMENT`.

        Raises:
            OSError: the file cannot be opened; EINVAL where the file system has no direct I/O.
            LoadError: the store is closed.
        """
        with self._lock:
            if self._is_closed:
                raise LoadError(f"{name} cannot be read: the store of {self._folder} is closed")
            if (name, direct) not in self._open:
                flags = os.O_DIRECT if direct else 0
                self._open[name, direct] = open_regular(self._partial.path(name), flags)
                if not self._readahead:
                    read_nothing_ahead(self._open[name, direct])
            return self._open[name, direct]

    def cached_share(self, name: str, start: int, stop: int) -> float:
        """Estimate from a few samples how much of a range is in the page cache, from 0 to 1.

        Returns 1 where the system does not report it, such as for another user's file.
        """
        import ctypes  # slow to import, and not needed for planning

        pages, samples = 16, 16
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        size = self.size(name)
        if not size:
            return 1.0
        with mmap.mmap(self.descriptor(name), size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            view = np.frombuffer(mapping, dtype=np.uint8)
            address, flags = view.ctypes.data, (ctypes.c_ubyte * pages)()
            held = total = 0
            for sample in range(samples):
                at = (start + (stop - start) * sample // samples) // mmap.PAGESIZE * mmap.PAGESIZE
                length = min(pages * mmap.PAGESIZE, size - at)
                if mincore(address + at, length, flags):
                    return 1.0
                count = -(-length // mmap.PAGESIZE)
                held, total = held + sum(flag & 1 for flag in flags[:count]), total + count
            del view
        return held / total

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``; see `Store`."""
        data = bytearray(length)
        self.readinto(name, start, [memoryview(data)])
        return bytes(data)

    def readinto(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` with the bytes from ``start`` on; see `Store`. What a partial copy lacks is not read as zeros."""
        if self.coverage is not None:
            end = start + sum(b.nbytes for b in buffers)
            if missing := self.coverage.lacking([(name, start, end)]):
                raise LoadError(f"{name}: {missing:,} of the bytes {start:,} to {end:,} are not on disk", hint=PULL)
        descriptor = self.descriptor(name)
        left = [b for b in buffers if b.nbytes]
        while left:
            got = os.preadv(descriptor, left[:MAX_BUFFERS], start)
            if got == 0:
                wanted = sum(b.nbytes for b in left)
                raise LoadError(f"{name} ends at byte {start:,}, but {wanted:,} more bytes were expected")
            start += got
            done = 0
            while done < len(left) and got >= left[done].nbytes:
                got -= left[done].nbytes
                done += 1
            left = left[done:]
            if got:
                left[0] = left[0][got:]

    def close(self) -> None:
        """Close all files; later reads raise `LoadError`."""
        with self._lock:
            self._is_closed = True
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def __enter__(self) -> LocalStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
