"""A folder with only some bytes of a checkpoint's shards, as `loadmaster pull` makes it: which bytes it has, and which not.

A shard that is not whole is a sparse file ``NAME.partial``, so no program takes it for the shard. The file `MANIFEST` beside it
says where the shards came from and which ranges are there, in JSON lines: one for each file, then one for each range that was
written and synced to disk, with its SHA-256. A line that was cut off by an interruption is ignored. What is not listed is never
read: the rest of a sparse file reads as zeros.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from loadmaster.checkpoint.origin import Origin
from loadmaster.errors import CheckpointError
from loadmaster.findings import Finding, gib

MANIFEST = "loadmaster.partial.jsonl"
LOCK = "loadmaster.partial.lock"
"""Beside the manifest: the process that writes the copy holds a lock on this file."""
SUFFIX = ".partial"
VERSION = 1

Span = tuple[int, int]
"""The first byte of a range, and the byte after its last."""


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A shard's ``size`` and ETag, and its ``spans`` that are on disk: ascending, and not touching each other."""

    size: int
    etag: str | None
    spans: tuple[Span, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(end - start for start, end in self.spans)

    @property
    def is_whole(self) -> bool:
        """Whether every byte is on disk."""
        return self.num_bytes == self.size

    def lacking(self, start: int, end: int) -> list[Span]:
        """Return the parts of a range that are not on disk.

        >>> PartialFile(100, None, ((0, 10), (20, 30))).lacking(5, 40)
        [(10, 20), (30, 40)]
        """
        lacking = []
        first = max(0, bisect_right(self.spans, (start, self.size)) - 1)
        for have_start, have_end in self.spans[first:]:
            if have_start >= end:
                break
            if have_start > start:
                lacking.append((start, have_start))
            start = max(start, have_end)
        return [*lacking, (start, end)] if start < end else lacking


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a partial copy has: its ``origin``, and its shards by name."""

    origin: Origin
    files: Mapping[str, PartialFile] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether every byte of every shard is on disk."""
        return all(f.is_whole for f in self.files.values())

    def finding(self) -> Finding:
        """Return the note that the copy is partial."""
        have, size = sum(f.num_bytes for f in self.files.values()), sum(f.size for f in self.files.values())
        message = f"a partial copy of {self.origin}: {gib(have)} of {gib(size)} are on disk"
        hint = (
            "`loadmaster pull` gets what other ranks need; ranks whose bytes are not on disk are refused when they load"
        )
        return Finding("checkpoint-partial", "note", message, file=MANIFEST, hint=hint)

    def lacking(self, reads: Iterable[tuple[str, int, int]]) -> int:
        """Return how many bytes of ranges (file, start, end) are not on disk."""
        return sum(
            end - start
            for name, first, last in reads
            if name in self.files
            for start, end in self.files[name].lacking(first, last)
        )


def merged(spans: Iterable[Span], gap: int = 0) -> tuple[Span, ...]:
    """Return ranges in order, with those joined that overlap, touch, or are at most ``gap`` bytes apart.

    >>> merged([(20, 30), (0, 10), (10, 12)]), merged([(0, 10), (12, 20)], gap=2)
    (((0, 12), (20, 30)), ((0, 20),))
    """
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def read_coverage(folder: Path) -> Coverage | None:
    """Return what a partial copy has; None for any other folder.

    Raises:
        CheckpointError: the manifest cannot be read.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not os.access(folder, os.X_OK):
            return None  # listing the folder says why
        raise _damaged(folder, str(error.strerror or error)) from error
    lines = text.split(b"\n")[:-1]  # the last one is empty, or was cut off
    try:
        first, *rest = map(orjson.loads, lines)
        if first["loadmaster partial"] != VERSION:
            raise ValueError(f"its version is {first['loadmaster partial']}")
        files: dict[str, PartialFile] = {}
        spans: dict[str, list[Span]] = {}
        for line in rest:
            name = line["file"]
            if "size" in line:
                files[name] = PartialFile(_number(line["size"]), line["etag"])
                spans[name] = []
            else:
                spans[name].append((_number(line["start"]), _number(line["end"])))
        whole = {n: PartialFile(f.size, f.etag, merged(spans[n])) for n, f in files.items()}
        return Coverage(Origin.from_json(first["origin"]), whole)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, str(error)) from error


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of bytes")
    return value


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / MANIFEST} cannot be read, so it is not known which bytes are on disk: {reason}",
        hint="pull again, into an empty folder",
    )


class PartialPaths:
    """Where the files of a folder are: a shard of a partial copy that is not whole has another name on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.coverage = read_coverage(folder)

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        file = self.coverage.files.get(name) if self.coverage is not None else None
        at = self._folder / name
        return at if file is None or at.exists() else self._folder / f"{name}{SUFFIX}"

    def stamp(self, name: str, stat: os.stat_result) -> tuple[int, int]:
        """Return two numbers that change when a file does: its size in bytes, and its modification time in nanoseconds.

        A shard of a partial copy is written while it is read: another process may download more of it. Its second number is
        that of its inode, which changes where the file is replaced.
        """
        is_copied = self.coverage is not None and name in self.coverage.files
        return stat.st_size, stat.st_ino if is_copied else stat.st_mtime_ns

    def names(self, names: list[str]) -> list[str]:
        """Return the names of a folder's files, each shard under its own."""
        if self.coverage is None:
            return names
        partial = {f"{n}{SUFFIX}": n for n in self.coverage.files}
        return sorted({partial.get(n, n) for n in names})
