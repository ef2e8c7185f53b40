"""Decides what is read: every file with its tensors, how each is checked, and which are hashed. Reads no payload."""

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
from loadmaster.errors import CheckpointError
from loadmaster.findings import Finding
from loadmaster.payload.journal import VERSION, Entry, Journal
from loadmaster.payload.manifest import Manifest
from loadmaster.payload.records import Record, Records, read_records
from loadmaster.payload.roles import SCALES, Role, Roles, Twin, roles_of
from loadmaster.payload.sketch import GRAIN, Samples
from loadmaster.payload.tally import BLOCK

CHUNK: Final = 2**22
"""Most bytes of one read."""


@dataclass(frozen=True, slots=True)
class FileTask:
    """One file to read: its size in bytes and time stamp in nanoseconds when the headers were read.

    ``ids`` are the tensors to check, in file order; ``start`` and ``stop`` are their bytes. A tensor is divided at multiples of
    ``units`` bytes, counted from its first byte. ``records`` are compared with the file's SHA-256; none where that is not
    requested.
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
        """Yield (start, stop) of each read: all of the file, without dividing an element, or a twin's block."""
        at = 0
        while at < self.size:
            stop = min(at + CHUNK, self.size)
            if stop < self.size:
                i = int(np.searchsorted(self.start, stop)) - 1  # the last tensor that begins before it
                if i >= 0 and self.stop[i] > stop:
                    stop -= int((stop - self.start[i]) % self.units[i])
            yield at, stop
            at = stop

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield (index into ``ids``, start, stop) of each tensor's bytes within a range of the file."""
        first = int(np.searchsorted(self.stop, start, side="right"))
        for i in range(first, int(np.searchsorted(self.start, stop))):
            begin, end = max(int(self.start[i]), start), min(int(self.stop[i]), stop)
            if begin < end:
                yield i, begin, end


@dataclass(frozen=True)
class Survey:
    """What is read and checked. ``done`` are files that a journal has; they are not read again.

    ``unrecorded`` counts shards without a recorded SHA-256, or where it is not requested. ``findings`` are those known before
    reading. With ``digesting`` the SHA-256 of each tensor is computed; ``against`` is the manifest to compare with, if any.
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
        """Bytes to read."""
        return sum(t.size for t in self.to_read)

    @property
    def twins(self) -> tuple[Twin, ...]:
        """Pairs whose bytes can be compared: of the same dtype and shape."""
        column = self.checkpoint.table.signature
        return tuple(t for t in self.roles.twins if column[t.copy] == column[t.original])

    def signature(self, number: int) -> Signature:
        """Return a tensor's dtype and shape."""
        table = self.checkpoint.table
        return table.signatures[int(table.signature[number])]

    def samples(self, number: int) -> Samples | None:
        """Return an empty `Samples` for a tensor; None for tensors that are not compared with peers."""
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
    """Decide what to read of a checkpoint, and which checks to make.

    With ``hashing`` files are compared with their recorded SHA-256, including files that are not shards. With ``digesting``
    the SHA-256 of each tensor is computed, which is slower. ``against`` is a manifest of tensors, or the SHA-256 of files, of a
    known-good copy.
    """
    roles = roles_of(checkpoint)
    _refuse_partial(checkpoint)
    records = read_records(checkpoint.folder)
    shards = {f.name for f in checkpoint.files}
    strange = {f.file for f in checkpoint.findings}  # including shards that could not be opened
    wanted = dict(records.of) if hashing else {}
    if isinstance(against, Records):
        wanted = {n: (*wanted.get(n, ()), *against.of.get(n, ())) for n in wanted.keys() | against.of.keys()}
    survey = Survey(
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
    tasks = [*_shards(survey), *_others(checkpoint.path, others)]
    tasks = [replace(t, records=wanted.get(t.name, ())) for t in tasks]
    if journal is None:
        return replace(survey, tasks=tuple(tasks))
    tasks = [replace(t, key=_key(survey, t)) for t in tasks]
    entries = {t.name: journal.find(t.key, hashed=bool(t.records), digested=survey.digesting) for t in tasks}
    return replace(
        survey, tasks=tuple(tasks), done={name: entry for name, entry in entries.items() if entry is not None}
    )


def _shards(survey: Survey) -> Iterator[FileTask]:
    table = survey.checkpoint.table
    twins = [n for t in survey.twins for n in (t.copy, t.original)]
    units = np.full(len(table), GRAIN, dtype=np.int64)
    units[twins] = BLOCK
    bounds = np.searchsorted(table.file, np.arange(len(survey.checkpoint.files) + 1))
    for number, file in enumerate(survey.checkpoint.files):
        ids = np.arange(bounds[number], bounds[number + 1])
        start = table.start[ids]
        stop = start + table.nbytes[ids]
        before = np.maximum.accumulate(np.insert(stop, 0, file.header_bytes))[:-1]
        sound = (start >= before) & (stop <= file.size)  # overlaps and tensors beyond the end are the headers' findings
        ids, start, stop = ids[sound], start[sound], stop[sound]
        yield FileTask(file.name, file.size, file.mtime_ns, ids, start, stop, units[ids])


def _others(folder: Path, names: list[str]) -> Iterator[FileTask]:
    none = np.empty(0, dtype=np.int64)
    for name in names:
        stat = (folder / name).stat()
        yield FileTask(name, stat.st_size, stat.st_mtime_ns, none, none, none, none)


def _key(survey: Survey, task: FileTask) -> str:
    """Return a digest of everything that a file's findings depend on: the file, its header, and its checks."""
    header = b""
    sizes = {f.name: f.header_bytes for f in survey.checkpoint.files}
    if task.name in sizes:
        with LocalStore(survey.checkpoint.path) as store:
            header = store.read_range(task.name, 0, min(sizes[task.name], task.size))
    what = [VERSION, task.name, task.size, task.mtime_ns, hashlib.sha256(header).hexdigest()]
    digest = hashlib.sha256(orjson.dumps(what))
    for column in (task.ids - (task.ids[0] if len(task.ids) else 0), task.units, survey.roles.column[task.ids]):
        digest.update(np.ascontiguousarray(column).tobytes())
    for known in (survey.roles.groups, survey.roles.spare, survey.roles.states):
        digest.update(orjson.dumps([known.get(i) for i in task.ids.tolist() if i in known]))
    return digest.hexdigest()


def _refuse_partial(checkpoint: Checkpoint) -> None:
    """Refuse a partial copy: what it lacks cannot be verified.

    Raises:
        CheckpointError: it lacks bytes.
    """
    if partial := next((f for f in checkpoint.findings if f.code == "checkpoint-partial"), None):
        raise CheckpointError(
            f"every byte is read, and this is {partial.message}", hint="pull the whole model: no --stage, no --rank"
        )
