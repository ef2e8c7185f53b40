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
from loadmaster.findings import Finding
from loadmaster.payload.journal import VERSION, Entry, Journal
from loadmaster.payload.manifest import Manifest
from loadmaster.payload.records import Record, Records, read_records
from loadmaster.payload.roles import SCALES, Role, Roles, Twin, roles_of
from loadmaster.payload.sketch import GRAIN, Samples
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

    ``unrecorded`` counts shards of which no SHA-256 is recorded, or none is wanted. ``findings`` need no reading. With
    ``digesting`` the SHA-256 of each tensor is taken; ``against`` is what it is compared with, if anything.
    """

    checkpoint: Checkpoint = field(repr=False)
    roles: Roles = field(repr=False)
    tasks: tuple[FileTask, ...] = field(repr=False)
    done: dict[str, Entry] = field(repr=False)
    findings: tuple[Finding, ...]
    unrecorded: int
    hashing: bool
    digesting: bool = False
    against: Manifest | None = field(default=None, repr=False)

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

    def samples(self, number: int) -> Samples | None:
        """Return where samples of a tensor go; None for those that have no peers to be compared with."""
        role = int(self.roles.column[number])
        if role not in (Role.WEIGHT, Role.INDEX, *SCALES):
            return None
        signature = self.signature(number)
        return Samples(signature.num_bytes, signature.dtype, role, *self.roles.groups.get(number, (0, 0)))

    def file_of(self, number: int) -> str:
        """Return the name of a tensor's file."""
        return self.checkpoint.files[int(self.checkpoint.table.file[number])].name


def survey_payload(
    checkpoint: Checkpoint,
    *,
    hashing: bool = True,
    journal: Journal | None = None,
    digesting: bool = False,
    against: Manifest | Records | None = None,
) -> Survey:
    """Tell what of a checkpoint is to be read, and what for.

    With ``hashing`` recorded files are held against their SHA-256, files that are no shards among them. With ``digesting``
    the SHA-256 of each tensor is taken, which is slower. ``against`` is a manifest of tensors, or the SHA-256 of files, of a
    known-good copy.
    """
    roles = roles_of(checkpoint)
    records = read_records(checkpoint.path)
    shards = {f.name for f in checkpoint.files}
    strange = {f.file for f in checkpoint.findings}  # shards that are not opened for a reason
    wanted = dict(records.of) if hashing else {}
    if isinstance(against, Records):
        wanted = {n: (*wanted.get(n, ()), *against.of.get(n, ())) for n in wanted.keys() | against.of.keys()}
    made = Survey(
        checkpoint=checkpoint,
        roles=roles,
        tasks=(),
        done={},
        findings=(
            *roles.findings,
            *(records.findings if hashing else ()),
            *(against.findings if isinstance(against, Records) else ()),
        ),
        unrecorded=sum(name not in wanted for name in shards),
        hashing=bool(hashing or wanted),
        digesting=digesting or isinstance(against, Manifest),
        against=against if isinstance(against, Manifest) else None,
    )
    others = [n for n in sorted(wanted.keys() - shards) if not n.endswith(".safetensors") or n in strange]
    tasks = [*_shards(made), *_others(checkpoint.path, others)]
    tasks = [replace(t, records=wanted.get(t.name, ())) for t in tasks]
    if journal is None:
        return replace(made, tasks=tuple(tasks))
    tasks = [replace(t, key=_key(made, t)) for t in tasks]
    found = {t.name: journal.find(t.key, hashed=bool(t.records), digested=made.digesting) for t in tasks}
    return replace(made, tasks=tuple(tasks), done={name: entry for name, entry in found.items() if entry is not None})


def _shards(made: Survey) -> Iterator[FileTask]:
    table = made.checkpoint.table
    twins = [n for t in made.twins for n in (t.copy, t.original)]
    units = np.full(len(table), GRAIN, dtype=np.int64)
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
    digest.update(orjson.dumps([made.roles.groups.get(i) for i in task.ids.tolist() if i in made.roles.groups]))
    return digest.hexdigest()
