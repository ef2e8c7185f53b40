"""Opening a checkpoint: every header of every shard into columns, and everything the files contradict themselves in."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadmaster.checkpoint.config import read_config
from loadmaster.checkpoint.header import HeaderError, check_length, parse_header
from loadmaster.checkpoint.index import INDEX_NAME, Index, compare, missing_shards, read_index
from loadmaster.checkpoint.table import Signature, TensorTable
from loadmaster.errors import CheckpointError
from loadmaster.findings import Finding

FIRST_READ_BYTES = 2**18
"""Read of each file at first: holds most headers whole."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file: its size and ``header_bytes`` (where its data begins) in bytes, its time stamp in nanoseconds."""

    name: str
    size: int
    header_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of safetensors shards, as its headers, index and config say; no payload is read.

    ``digest`` is the SHA-256 over the files' names, sizes and headers. ``findings`` are what is wrong with the files;
    ``config`` is None where it could not be read, which is a finding too.
    """

    path: Path
    files: tuple[ShardFile, ...]
    table: TensorTable = field(repr=False)
    config: dict[str, Any] | None = field(repr=False)
    index: Index | None = field(repr=False)
    findings: tuple[Finding, ...]
    digest: str


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder of shards (with an index or without), a folder with one file, or one file.

    Raises:
        CheckpointError: there is nothing to open. Everything else that is wrong is in the checkpoint's findings.
    """
    with _no_collection():
        return _open(Path(path))


def _open(path: Path) -> Checkpoint:
    folder = path.parent if path.is_file() else path
    findings: list[Finding] = []
    index = None
    if path.is_file():
        names = [path.name]
    else:
        names = _shard_names(path)
        if (folder / INDEX_NAME).is_file():
            index, found = read_index(folder / INDEX_NAME)
            findings += found
        if index is not None:
            listed = set(index.weight_map.values())
            findings += missing_shards(index, names)
            findings += [_stray(n) for n in names if n not in listed]
            names = [n for n in names if n in listed]
        elif (folder / "consolidated.safetensors").is_file() and len(names) > 1:
            findings.append(_stray("consolidated.safetensors"))
            names = [n for n in names if n != "consolidated.safetensors"]
    reader = _Reader(folder)
    for name, read in zip(names, _read_headers(folder, names), strict=True):
        reader.add(name, read)
    table = reader.table()
    config, found = read_config(folder)
    findings += [*reader.findings, *found]
    if index is not None:
        files = [f.name for f in reader.files]
        unread = {f.file for f in reader.findings if f.file not in {files[i] for i in set(table.file.tolist())}}
        claimed = index
        if unread:
            claimed = Index({n: f for n, f in index.weight_map.items() if f not in unread}, index.total_size)
        places = dict(zip(table.names, map(files.__getitem__, table.file.tolist()), strict=True))
        complete = not any(f.code == "shard-missing" for f in findings) and not unread
        findings += [
            f for f in compare(claimed, places, table.payload_bytes) if complete or f.code != "index-total-size"
        ]
    return Checkpoint(folder, tuple(reader.files), table, config, index, tuple(findings), reader.digest.hexdigest())


def _shard_names(path: Path) -> list[str]:
    if not path.is_dir():
        message = f"{path} does not exist"
        raise CheckpointError(message, findings=(Finding("checkpoint-missing", "error", message),))
    names = [p.name for p in path.iterdir() if p.name.endswith(".safetensors") and not p.name.startswith(".")]
    if not names:
        message = f"{path} holds no .safetensors file"
        others = sorted(p.name for p in path.iterdir())[:8]
        hint = f"it holds {', '.join(others)}" if others else "the folder is empty"
        raise CheckpointError(
            message, hint=hint, findings=(Finding("checkpoint-missing", "error", message, hint=hint),)
        )
    return sorted(names, key=lambda n: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", n)])


def _stray(name: str) -> Finding:
    return Finding(
        "shard-stray", "warning", "it lies in the folder, the index does not name it, it is not read", file=name
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector: decoding makes a million objects, and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


Read = tuple[bytes, int, int] | HeaderError
"""A header's text with its file's size and time stamp, or why there is none."""


def _read_headers(folder: Path, names: Sequence[str]) -> Iterator[Read]:
    """Yield each file's header text, in order; reading runs ahead in threads, decoding holds the interpreter anyway."""

    def read(name: str) -> Read:
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                stat = os.fstat(descriptor)
                text = os.pread(descriptor, FIRST_READ_BYTES, 0)
                length = check_length(name, text, stat.st_size)
                while len(text) < 8 + length:
                    more = os.pread(descriptor, 8 + length - len(text), len(text))
                    if not more:
                        break
                    text += more
                return text[8 : 8 + length], stat.st_size, stat.st_mtime_ns
            finally:
                os.close(descriptor)
        except HeaderError as error:
            return error
        except OSError as error:
            message = f"it cannot be read: {error.strerror or error}"
            return HeaderError(Finding("shard-unreadable", "error", message, file=name))

    ahead = 8
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(read, n) for n in names[:ahead]]
        for i in range(len(names)):
            yield waiting.pop(0).result()
            if i + ahead < len(names):
                waiting.append(pool.submit(read, names[i + ahead]))


class _Reader:
    """Collects headers into columns, file by file, and what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[ShardFile] = []
        self.findings: list[Finding] = []
        self.digest = hashlib.sha256()
        self._names: list[str] = []
        self._ids: dict[str, int] = {}
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._signatures: dict[tuple[str, tuple[int, ...]], int] = {}
        self._sizes: list[int] = []

    def add(self, name: str, read: Read) -> None:
        if isinstance(read, HeaderError):
            self._unreadable(name, read.finding)
            return
        text, size, mtime_ns = read
        try:
            header = parse_header(name, text)
        except HeaderError as error:
            self._unreadable(name, error.finding)
            return
        base = 8 + len(text)
        self.digest.update(f"{name}\0{size}\0".encode() + text)
        number = len(self.files)
        self.files.append(ShardFile(name, size, base, mtime_ns))
        known = self._signatures
        signature = np.array(
            [known.setdefault(key, len(known)) for key in zip(header.dtypes, header.shapes, strict=True)],
            dtype=np.int32,
        )
        begin, end = np.array(header.begins, dtype=np.int64), np.array(header.ends, dtype=np.int64)
        order = np.lexsort((end, begin))
        if not bool((order[1:] > order[:-1]).all()):
            names = [header.names[i] for i in order.tolist()]
            signature, begin, end = signature[order], begin[order], end[order]
        else:
            names = header.names
        keep = self._check(name, names, signature, begin, end, size - base)
        if keep is not None:
            names, signature, begin, end = [names[i] for i in keep], signature[keep], begin[keep], end[keep]
        first = len(self._names)
        twice = [n for n in names if n in self._ids] if not self._ids.keys().isdisjoint(names) else []
        for n in twice:
            other = self.files[int(np.concatenate([c[0] for c in self._columns])[self._ids[n]])].name
            self.findings.append(Finding("tensor-duplicate", "error", f"it is in {other} as well", tensor=n, file=name))
        if twice:
            at = [i for i, n in enumerate(names) if n not in self._ids]
            names, signature, begin, end = [names[i] for i in at], signature[at], begin[at], end[at]
        self._ids.update(zip(names, range(first, first + len(names)), strict=True))
        self._names += names
        self._columns.append((np.full(len(names), number, dtype=np.int32), begin + base, end - begin, signature))

    def _unreadable(self, name: str, finding: Finding) -> None:
        self.findings.append(finding)
        self.digest.update(f"{name}\0unreadable\0".encode())

    def _check(
        self, file: str, names: list[str], signature: np.ndarray, begin: np.ndarray, end: np.ndarray, data: int
    ) -> list[int] | None:
        """Check that each tensor's bytes fit its signature, and that together they fill the file.

        Returns the tensors to keep, None for all: one whose extent is wrong cannot be read.
        """
        while len(self._sizes) < len(self._signatures):
            dtype, shape = list(self._signatures)[len(self._sizes)]
            try:
                size = Signature(dtype, shape).num_bytes
            except ValueError:
                size = -1
            self._sizes.append(size if size < 2**62 else -1)
        expected = np.array(self._sizes, dtype=np.int64)[signature]
        wrong = np.flatnonzero(expected != end - begin)
        if len(wrong):
            for i in wrong[:8].tolist():
                dtype, shape = list(self._signatures)[int(signature[i])]
                needs = f"needs {int(expected[i]):,} bytes" if expected[i] >= 0 else "fills no whole number of bytes"
                self.findings.append(
                    Finding(
                        "header-extent",
                        "error",
                        f"{dtype} {list(shape)} {needs}, and the header gives it {int(end[i] - begin[i]):,} "
                        f"({int(begin[i]):,} to {int(end[i]):,})",
                        tensor=names[i],
                        file=file,
                    )
                )
            return np.flatnonzero(expected == end - begin).tolist()
        starts, ends = np.append(begin, data), np.insert(end, 0, 0)
        gaps = np.flatnonzero(starts[:-1] != ends[:-1])
        if len(gaps):
            i = int(gaps[0])
            what = "overlap" if starts[i] < ends[i] else "leave a gap"
            before = names[i - 1] if i else "the header"
            self.findings.append(
                Finding(
                    "header-tiling",
                    "error",
                    f"{before} and {names[i]} {what}: one ends at byte {int(ends[i]):,}, the next begins at {int(starts[i]):,}",
                    tensor=names[i],
                    file=file,
                )
            )
        last = int(ends[-1])
        if last > data:
            self.findings.append(
                Finding(
                    "file-truncated",
                    "error",
                    f"its tensors end at byte {last:,} of the data, and the file has {data:,}: {last - data:,} are missing",
                    file=file,
                    hint="the download is incomplete; fetch the shard again",
                )
            )
        elif last < data:
            self.findings.append(
                Finding(
                    "file-overlong",
                    "error",
                    f"its tensors end at byte {last:,} of the data, and the file goes on to {data:,}",
                    file=file,
                )
            )
        return None

    def table(self) -> TensorTable:
        columns = [np.concatenate(c) for c in zip(*self._columns, strict=True)] if self._columns else []
        empty = np.empty(0, dtype=np.int64)
        file, start, nbytes, signature = columns or (empty.astype(np.int32), empty, empty, empty.astype(np.int32))
        return TensorTable(
            self._names, self._ids, file, start, nbytes, signature, tuple(Signature(*k) for k in self._signatures)
        )
