"""Reads every byte once, on all cores, and checks values and hashes.

SHA-256 needs the bytes of a file (or tensor) in order, so each hashed file is read by one thread, the largest file first.
Chunks of other files are read by any thread. Each thread reuses one buffer.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loadmaster.catalogue import ranked
from loadmaster.checkpoint import LocalStore
from loadmaster.errors import LoadError
from loadmaster.findings import Finding, errors
from loadmaster.payload.copies import compare
from loadmaster.payload.journal import Entry, Journal
from loadmaster.payload.manifest import Manifest, differences, manifest_of
from loadmaster.payload.peers import compare_peers
from loadmaster.payload.roles import Role
from loadmaster.payload.sketch import Sketch, sketches_of
from loadmaster.payload.survey import CHUNK, FileTask, Survey
from loadmaster.payload.tally import Tally, findings_of, state_findings

FEWEST, MOST, SMALL = 64, 2**14, 2**10
"""Weights of one kind are checked together, this many at least and at most, if each has no more bytes than that."""

Advance = Callable[[int], None]
Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of reading all bytes. Bytes and seconds are those of this run, findings those of all files.

    ``num_recorded`` files were compared with a recorded SHA-256, ``num_mismatched`` of them differ; ``num_unrecorded`` shards
    have no record, or it was not requested. ``num_resumed`` files were read by an earlier run. ``digests`` are the SHA-256 of
    each tensor's bytes, by name; empty where they were not requested.
    """

    survey: Survey
    findings: tuple[Finding, ...]
    num_files: int
    num_resumed: int
    num_recorded: int
    num_mismatched: int
    num_unrecorded: int
    read_bytes: int
    seconds: float
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def sound(self) -> bool:
        """Whether the plan is proven and no check failed; there may be warnings and notes."""
        return not errors(self.findings) and self.survey.roles.proof is not None

    @property
    def manifest(self) -> Manifest:
        """The manifest of what was read; empty where the SHA-256 of tensors was not requested."""
        checkpoint = self.survey.checkpoint
        return manifest_of(checkpoint.table, self.digests, checkpoint.path.name, sound=self.sound)


def verify_payload(
    survey: Survey,
    *,
    journal: Journal | None = None,
    num_threads: int | None = None,
    on_progress: Advance | None = None,
) -> Verification:
    """Read the files of the survey, and return the results.

    ``num_threads`` None: two for each core, since some wait for the disk, but no more than 16 or the number of cores.
    ``on_progress`` is called from any thread with the bytes done. Memory is `CHUNK` bytes for each thread, and the results.

    Raises:
        LoadError: a file cannot be read, ends early, or changed since its header was read. Files finished before are in the
            journal.
    """
    begin = time.perf_counter()
    journal = journal or Journal()
    reading = _Reading(survey, journal, on_progress or (lambda _: None))
    cores = len(os.sched_getaffinity(0))
    threads = num_threads or max(cores, min(2 * cores, 16))
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in [pool.submit(reading.work) for _ in range(threads)]:
                    done.result()
            finally:
                reading.stop.set()  # otherwise the threads continue after an interrupt
    finally:
        reading.close()
    entries = survey.done | reading.entries
    findings = [f for task in survey.tasks for f in entries[task.name].findings]
    blocks = {name: digests for entry in entries.values() for name, digests in entry.blocks.items()}
    table = survey.checkpoint.table
    sketches = {table.ids[name]: sketch for entry in entries.values() for name, sketch in entry.sketches.items()}
    digests = {name: sha256 for entry in entries.values() for name, sha256 in (entry.digests or {}).items()}
    comparisons = list(compare_peers(survey, sketches, findings))
    if any(f.code == "value-all-zero" for f in comparisons):
        findings = [f for f in findings if f.code != "value-all-zero"]  # reported once for all tensors instead
    if survey.against is not None:
        comparisons += differences(table, digests, survey.against)
    mismatches = [f for task in survey.tasks for f in _mismatches(task, entries[task.name])]
    return Verification(
        survey=survey,
        findings=ranked([*survey.findings, *mismatches, *findings, *compare(survey, blocks), *comparisons]),
        num_files=len(survey.tasks),
        num_resumed=len(survey.done),
        num_recorded=sum(bool(t.records) for t in survey.tasks),
        num_mismatched=len({f.file for f in mismatches}),
        num_unrecorded=survey.unrecorded,
        read_bytes=survey.total_bytes,
        seconds=time.perf_counter() - begin,
        digests=digests,
    )


def _mismatches(task: FileTask, entry: Entry) -> Iterator[Finding]:
    for record in task.records:
        if record.sha256 != entry.sha256:
            message = f"its SHA-256 is {entry.sha256}, but {record.source} has {record.sha256}"
            hint = "fetch the file again; if it was changed on purpose, update the record"
            yield Finding("sha256-mismatch", "error", message, file=task.name, hint=hint)


class _Reading:
    """The work that the threads share."""

    def __init__(self, survey: Survey, journal: Journal, advance: Advance) -> None:
        self.survey = survey
        self.journal = journal
        self.advance = advance
        self.entries: dict[str, Entry] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._files: list[_File] = []
        self._units = self._divide()

    def _divide(self) -> Iterator[tuple[_File, list[tuple[int, int]]]]:
        """Yield units of work for a thread: all chunks of a hashed file, or one chunk of another."""

        def order(task: FileTask) -> tuple[bool, int]:
            whole = bool(task.records) or self.survey.digesting
            return not whole, -task.size if whole else 0

        for task in sorted(self.survey.to_read, key=order):
            file = _File(self.survey, task)
            self._files.append(file)
            chunks = list(task.chunks())
            file.num_left = len(chunks)
            units = [chunks] if file.sha256 or self.survey.digesting or not chunks else [[c] for c in chunks]
            yield from ((file, unit) for unit in units)

    def close(self) -> None:
        """Close the files that were not read completely."""
        for file in self._files:
            file.close()

    def work(self) -> None:
        """Process units until there are none left, or another thread fails."""
        buffer = np.empty(CHUNK + 8, dtype=np.uint8)
        try:
            while not self.stop.is_set():
                with self._lock:
                    file, chunks = next(self._units, (None, []))
                if file is None:
                    return
                for start, stop in chunks:
                    if self.stop.is_set():
                        return
                    file.read(start, stop, buffer)
                    self.advance(stop - start)
                if file.finished(len(chunks)):
                    entry = file.entry()
                    with self._lock:
                        self.entries[entry.file] = entry
                    self.journal.add(entry)
        except BaseException:
            self.stop.set()
            raise


class _File:
    """A file that is being read."""

    def __init__(self, survey: Survey, task: FileTask) -> None:
        self.survey = survey
        self.task = task
        self.num_left = 0
        self.sha256 = hashlib.sha256() if task.records else None
        self._twins = {n for t in survey.twins for n in (t.copy, t.original)}
        self._tallies: dict[int, Tally] = {}
        self._small: dict[int, Sketch] = {}
        self._alone = {*self._twins, *survey.roles.spare, *survey.roles.states}
        self._hashes = {int(i): hashlib.sha256() for i in task.ids} if survey.digesting else {}
        self._lock = threading.Lock()
        self._store = LocalStore(survey.checkpoint.path)

    def read(self, start: int, stop: int, buffer: Buffer) -> None:
        """Read a chunk, hash it where requested, and check its part of each tensor.

        The chunk has the same offset modulo 8 bytes in the buffer as in the file, so that elements are aligned.
        """
        lead = start % 8
        data = buffer[lead : lead + stop - start]
        assert len(data) == stop - start
        try:
            self._store.readinto(self.task.name, start, [data.data])
        except OSError as error:
            what = f"{self.task.name} cannot be read at byte {start:,}: {error.strerror or error}"
            raise LoadError(what) from error
        if self.sha256 is not None:
            self.sha256.update(data.data)
        seen: dict[int, Tally] = {}
        table, column = self.survey.checkpoint.table, self.survey.roles.column
        together = self._read_small(start, stop, data)
        for i, begin, end in self.task.parts(start, stop):
            number = int(self.task.ids[i])
            if number in together:
                continue
            tally = seen[number] = Tally(self.survey.samples(number))
            dtype = table.signatures[table.signature[number]].dtype
            offset = begin - int(self.task.start[i])
            part = data[begin - start : end - start]
            if self._hashes:
                self._hashes[number].update(part.data)
            spare = self.survey.roles.spare.get(number)
            first = None if spare is None else int(table.nbytes[number]) - spare
            tally.look(part, offset, dtype, int(column[number]), twin=number in self._twins, spare=first)
            if number in self.survey.roles.states:
                tally.text[offset] = part.tobytes()
        with self._lock:
            self._small |= together
            for number, tally in seen.items():
                if number in self._tallies:
                    self._tallies[number].merge(tally)
                else:
                    self._tallies[number] = tally

    def _read_small(self, start: int, stop: int, data: Buffer) -> dict[int, Sketch]:
        """Return the sketches of small weights that lie in a chunk beside others of their kind: they are checked together."""
        task, table, roles = self.task, self.survey.checkpoint.table, self.survey.roles
        inside = np.flatnonzero((task.start >= start) & (task.stop <= stop) & (task.stop > task.start))
        if self._hashes or len(inside) < FEWEST:
            return {}
        kind = table.signature[task.ids[inside]] * len(Role) + roles.column[task.ids[inside]]
        ends = task.stop[inside][:-1] != task.start[inside][1:]
        sketches: dict[int, Sketch] = {}
        for run in np.split(inside, np.flatnonzero((kind[1:] != kind[:-1]) | ends) + 1):
            first, last = int(task.start[run[0]]), int(task.stop[run[-1]])
            numbers = task.ids[run].tolist()
            if (
                len(run) < FEWEST
                or last - first > SMALL * len(run)
                or roles.column[numbers[0]] != Role.WEIGHT
                or not self._alone.isdisjoint(numbers)
            ):
                continue
            tensors = data[first - start : last - start].reshape(len(run), -1)
            dtype = self.survey.signature(numbers[0]).dtype
            made = [s for at in range(0, len(run), MOST) for s in sketches_of(tensors[at : at + MOST], dtype)]
            sketches |= {number: sketch for number, sketch in zip(numbers, made, strict=True) if sketch is not None}
        return sketches

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def finished(self, num_chunks: int) -> bool:
        """Count chunks as read; return True once none is left."""
        with self._lock:
            self.num_left -= num_chunks
            return self.num_left == 0

    def entry(self) -> Entry:
        """Return the file's results, once it is read completely.

        Raises:
            LoadError: the file changed since its header was read.
        """
        task, table = self.task, self.survey.checkpoint.table
        stamp = None
        with suppress(OSError):
            stamp = self._store.stamp(task.name)
        self.close()
        if stamp != (task.size, task.mtime_ns):
            raise LoadError(f"{task.name} changed while it was read", hint="verify again when nothing writes to it")
        findings: list[Finding] = []
        sketches = self._small | {n: t.samples.sketch() for n, t in self._tallies.items() if t.samples is not None}
        sketches = dict(sorted(sketches.items()))
        for number in (n for n, sketch in self._small.items() if sketch.hole):
            self._tallies[number] = Tally()  # of zeros alone
        for number in sorted(self._tallies):
            signature, role = self.survey.signature(number), int(self.survey.roles.column[number])
            tally, sketch = self._tallies[number], sketches.get(number)
            findings += findings_of(tally, table.names[number], signature, task.name, role, sketch)
            if (format_ := self.survey.roles.states.get(number)) is not None:
                findings += state_findings(tally, format_, table.names[number], task.name)
        blocks = {
            table.names[n]: [digest for _, digest in sorted(t.blocks.items())]
            for n, t in self._tallies.items()
            if n in self._twins
        }
        sha256 = self.sha256.hexdigest() if self.sha256 else None
        self._tallies.clear()
        return Entry(
            task.key,
            task.name,
            task.size,
            task.mtime_ns,
            sha256,
            tuple(findings),
            blocks,
            {table.names[n]: s for n, s in sketches.items()},
            {table.names[n]: h.hexdigest() for n, h in self._hashes.items()} if self.survey.digesting else None,
        )
