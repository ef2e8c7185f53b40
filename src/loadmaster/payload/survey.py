"""What is to be read: every file with its tensors, what each of them is held against, and which are hashed. No payload."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from loadmaster.checkpoint import Checkpoint, LocalStore, Signature
from loadmaster.dtypes import DTYPES
from loadmaster.findings import Finding
from loadmaster.payload.journal import VERSION, Entry, Journal
from loadmaster.payload.records import Record, read_records
from loadmaster.payload.roles import Roles, Twin, roles_of
from loadmaster.payload.tally import BLOCK

CHUNK: Final = 2**22
"""Bytes read at a time, at most."""


@dataclass(frozen=True, slots=True)
class FileTask:
    """One file to be read: its size in bytes and time stamp in nanoseconds, as the headers were read.

    ``ids`` are the tensors to be looked at, by their place in the file; ``start`` and ``stop`` their bytes. ``units`` are
    the bytes that a part must be a multiple of, counted from the tensor's first. ``records`` are those that its SHA-256
    is held against, none where it is not wanted.
    """

    name: str
    size: int
    mtime_ns: int
    ids: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    records: tuple[Record, ...] = ()
    key: str = ""

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of what is read at a time: all of the file, without parting an element, or a twin's block."""
        at = 0
        while at < self.size:
            stop = min(at + CHUNK, self.size)
            if stop < self.size:
                i = int(np.searchsorted(self.start, stop)) - 1  # the last that begins before
                if i >= 0 and self.stop[i] > stop:
                    stop -= int((stop - self.start[i]) % self.units[i])
            yield at, stop
            at = stop

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place in ``ids``, start, stop) of each tensor's bytes within a range of the file."""
        first = int(np.searchsorted(self.stop, start, side="right"))
        for i in range(first, int(np.searchsorted(self.start, stop))):
            begin, end = max(int(self.start[i]), start), min(int(self.stop[i]), stop)
            if begin < end:
                yield i, begin, end


@dataclass(frozen=True)
class Survey:
    """Everything that decides what is read. ``done`` are files that a journal has, which are not read again.

    ``unrecorded`` counts shards of which no SHA-256 is recorded, or none is wanted. ``findings`` need no reading.
    """

    checkpoint: Checkpoint = field(repr=False)
    roles: Roles = field(repr=False)
    tasks: tuple[FileTask, ...] = field(repr=False)
    done: dict[str, Entry] = field(repr=False)
    findings: tuple[Finding, ...]
    unrecorded: int
    hashing: bool

    @property
    def to_read(self) -> tuple[FileTask, ...]:
        """The files that are not done."""
        return tuple(t for t in self.tasks if t.name not in self.done)

    @property
    def total_bytes(self) -> int:
        """Bytes to be read."""
        return sum(t.size for t in self.to_read)

    @property
    def twins(self) -> tuple[Twin, ...]:
        """Pairs whose bytes can be compared: of one number format and shape."""
        column = self.checkpoint.table.signature
        return tuple(t for t in self.roles.twins if column[t.copy] == column[t.original])

    def signature(self, number: int) -> Signature:
        """Return a tensor's number format and shape."""
        table = self.checkpoint.table
        return table.signatures[int(table.signature[number])]

    def file_of(self, number: int) -> str:
        """Return the name of a tensor's file."""
        return self.checkpoint.files[int(self.checkpoint.table.file[number])].name


def survey_payload(checkpoint: Checkpoint, *, hashing: bool = True, journal: Journal | None = None) -> Survey:
    """Tell what of a checkpoint is to be read, and what for. With ``hashing`` recorded files are held against their SHA-256,
    files that are no shards among them."""
    roles = roles_of(checkpoint)
    records = read_records(checkpoint.path)
    shards = {f.name for f in checkpoint.files}
    strange = {f.file for f in checkpoint.findings}  # shards that are not opened for a reason
    wanted = records.of if hashing else {}
    made = Survey(
        checkpoint=checkpoint,
        roles=roles,
        tasks=(),
        done={},
        findings=(*map(_lowered, checkpoint.findings), *roles.findings, *(records.findings if hashing else ())),
        unrecorded=sum(name not in wanted for name in shards),
        hashing=hashing,
    )
    others = [n for n in sorted(wanted.keys() - shards) if not n.endswith(".safetensors") or n in strange]
    tasks = [*_shards(made), *_others(checkpoint.path, others)]
    tasks = [replace(t, records=wanted.get(t.name, ())) for t in tasks]
    if journal is None:
        return replace(made, tasks=tuple(tasks))
    tasks = [replace(t, key=_key(made, t)) for t in tasks]
    found = {t.name: journal.find(t.key, hashed=bool(t.records)) for t in tasks}
    return replace(made, tasks=tuple(tasks), done={name: entry for name, entry in found.items() if entry is not None})


def _lowered(finding: Finding) -> Finding:
    """Return a finding of the config as a note: the payload can be read without it."""
    return replace(finding, severity="note") if finding.file == "config.json" else finding


def _shards(made: Survey) -> Iterator[FileTask]:
    table = made.checkpoint.table
    twins = [n for t in made.twins for n in (t.copy, t.original)]
    elements = np.array([max(DTYPES[s.dtype].bits // 8, 1) for s in table.signatures], dtype=np.int64)
    units = elements[table.signature]
    units[twins] = BLOCK
    bounds = np.searchsorted(table.file, np.arange(len(made.checkpoint.files) + 1))
    for number, file in enumerate(made.checkpoint.files):
        ids = np.arange(bounds[number], bounds[number + 1])
        start = table.start[ids]
        stop = start + table.nbytes[ids]
        before = np.maximum.accumulate(np.insert(stop, 0, file.header_bytes))[:-1]
        sound = (start >= before) & (
            stop <= file.size
        )  # what overlaps, or lies beyond the end, is the headers' finding
        ids, start, stop = ids[sound], start[sound], stop[sound]
        yield FileTask(file.name, file.size, file.mtime_ns, ids, start, stop, units[ids])


def _others(folder: Path, names: list[str]) -> Iterator[FileTask]:
    none = np.empty(0, dtype=np.int64)
    for name in names:
        stat = (folder / name).stat()
        yield FileTask(name, stat.st_size, stat.st_mtime_ns, none, none, none, none)


def _key(made: Survey, task: FileTask) -> str:
    """Return a digest of everything that a file's findings depend on: the file, its header, and what it is held against."""
    header = b""
    sizes = {f.name: f.header_bytes for f in made.checkpoint.files}
    if task.name in sizes:
        with LocalStore(made.checkpoint.path) as store:
            header = store.read_range(task.name, 0, min(sizes[task.name], task.size))
    what = [VERSION, task.name, task.size, task.mtime_ns, hashlib.sha256(header).hexdigest()]
    digest = hashlib.sha256(orjson.dumps(what))
    for column in (task.ids - (task.ids[0] if len(task.ids) else 0), task.units, made.roles.column[task.ids]):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
