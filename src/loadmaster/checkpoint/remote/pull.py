"""Downloads ranges of a checkpoint's shards into a sparse local copy, which `open_checkpoint` and a loader take like the whole.

Each range is written, synced, and only then recorded in the copy's manifest with its SHA-256, so that an interruption at any
point loses no more than the ranges of the last second. A shard that becomes whole is compared with its SHA-256, where the hub
states it, and gets its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType

import orjson

from loadmaster.checkpoint.config import QUANTISATION
from loadmaster.checkpoint.index import INDEX_NAME
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.partial import MANIFEST, SUFFIX, VERSION, Coverage, PartialFile, Span, merged, read_coverage
from loadmaster.checkpoint.remote.files import CONNECTIONS, ChangedFileError, MissingFileError, RemoteFiles
from loadmaster.checkpoint.repository import RUNNING
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.findings import gib
from loadmaster.limits import Limit, LimitError

PIECE_BYTES = 2**23
"""Most bytes of one request; each is in memory once."""
SMALL_BYTES = Limit(
    200_000_000, "bytes of a file beside the shards", "about 35,000,000 (a tokenizer)", "a file of gigabytes"
)
"""A repository holds anything; only what a model needs is downloaded, and no such file is larger."""
GAP_BYTES = 2**17
"""Ranges that are no further apart are requested as one: a request costs about as much as these bytes."""
SYNC_S = 1.0
"""How often what was written is synced and recorded."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRange:
    """A range of one file."""

    name: str
    start: int
    end: int


class LocalCopy:
    """A partial copy that is being written.

    Raises:
        CheckpointError: the folder holds something else: another checkpoint, or another commit of this one.
        LoadError: it cannot be written.
    """

    def __init__(self, folder: Path, origin: Origin, sizes: Mapping[str, tuple[int, str | None]]) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self._spans: dict[str, list[Span]] = {n: [] for n in sizes}
        self._sizes = dict(sizes)
        folder.mkdir(parents=True, exist_ok=True)
        known = read_coverage(folder)
        if known is None:
            self._refuse_others(folder)
        else:
            self._resume(known, origin)
        self._manifest = self._begin(origin, known)

    def _refuse_others(self, folder: Path) -> None:
        others = [p.name for p in folder.iterdir() if p.name.endswith((".safetensors", SUFFIX))]
        if others:
            raise CheckpointError(
                f"{folder} holds shards that were not pulled, such as {others[0]}", hint="give an empty --local-dir"
            )

    def _resume(self, known: Coverage, origin: Origin) -> None:
        was, now = known.origin, origin
        if (was.kind, was.name, was.commit) != (now.kind, now.name, now.commit):
            raise CheckpointError(
                f"{self._folder} holds part of {was}, and {now} was requested", hint="give another --local-dir"
            )
        for name, file in known.files.items():
            if self._sizes.get(name) != (file.size, file.etag):
                raise CheckpointError(
                    f"{self._folder}: {name} changed at its origin since a part of it was pulled",
                    hint="give another --local-dir",
                )
            path = next((p for p in (self._folder / name, self._folder / f"{name}{SUFFIX}") if p.exists()), None)
            if path is None:
                continue  # removed by hand: its ranges are pulled again
            if path.stat().st_size != file.size:
                raise CheckpointError(f"{path} has another size than was pulled", hint="give another --local-dir")
            self._spans[name] = list(file.spans)

    def _begin(self, origin: Origin, known: Coverage | None) -> int:
        """Write the manifest anew, with the ranges of an earlier pull that are still on disk; return its descriptor."""
        lines: list[dict[str, object]] = [{"loadmaster partial": VERSION, "origin": origin.as_json()}]
        lines += ({"file": n, "size": size, "etag": etag} for n, (size, etag) in self._sizes.items())
        path, new = self._folder / MANIFEST, self._folder / f"{MANIFEST}.new"
        if known is not None:
            old = [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            lines += (line for line in old if "start" in line and self._spans.get(line["file"]))
        with new.open("wb") as file:
            file.writelines(orjson.dumps(line) + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        self._sync_folder()
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def lacking(self, wanted: Mapping[str, Iterable[Span]]) -> list[FileRange]:
        """Return what is missing of ranges, in pieces of at most `PIECE_BYTES`."""
        pieces = []
        for name, spans in wanted.items():
            have = self._have(name)
            lacking = merged((s for start, end in spans for s in have.lacking(start, end)), GAP_BYTES)
            exact = [s for start, end in lacking for s in have.lacking(start, end)]  # a gap may be there already
            for start, end in exact:
                pieces += [FileRange(name, at, min(at + PIECE_BYTES, end)) for at in range(start, end, PIECE_BYTES)]
        return pieces

    def _have(self, name: str) -> PartialFile:
        size, etag = self._sizes[name]
        return PartialFile(size, etag, merged(self._spans[name]))

    def write(self, piece: FileRange, data: bytes) -> str:
        """Write a piece; return its SHA-256. It is not recorded yet."""
        descriptor = self._open(piece.name)
        view, at = memoryview(data), piece.start
        while view.nbytes:
            done = os.pwrite(descriptor, view, at)
            view, at = view[done:], at + done
        return hashlib.sha256(data).hexdigest()

    def _open(self, name: str) -> int:
        with self._lock:
            if name not in self._files:
                path = self._folder / f"{name}{SUFFIX}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                os.ftruncate(descriptor, self._sizes[name][0])
                self._files[name] = descriptor
            return self._files[name]

    def record(self, written: Mapping[FileRange, str]) -> None:
        """Sync the files of pieces that were written, then record these."""
        for name in {p.name for p in written}:
            os.fdatasync(self._files[name])
        lines = ({"file": p.name, "start": p.start, "end": p.end, "sha256": sha} for p, sha in written.items())
        os.write(self._manifest, b"".join(orjson.dumps(line) + b"\n" for line in lines))
        os.fdatasync(self._manifest)
        for piece in written:
            self._spans[piece.name].append((piece.start, piece.end))

    def name_whole(self) -> None:
        """Give shards that are whole their names, after a comparison with their SHA-256 where the origin states it.

        Raises:
            LoadError: a shard has another SHA-256; its file was removed.
        """
        for name, (_, etag) in self._sizes.items():
            partial = self._folder / f"{name}{SUFFIX}"
            if not partial.exists() or not self._have(name).is_whole:
                continue
            if etag is not None and _SHA256.fullmatch(etag):
                with partial.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != etag:
                    partial.unlink()
                    raise LoadError(
                        f"{name}: its SHA-256 is {found[:16]}…, and the hub states {etag[:16]}…; the file was removed",
                        hint="pull again; if it happens again, a proxy or the disk changes bytes",
                    )
            partial.rename(self._folder / name)
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files."""
        for descriptor in (*self._files.values(), self._manifest):
            os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> LocalCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pull(files: RemoteFiles, copy: LocalCopy, pieces: Iterable[FileRange], on_progress: Callable[[int], None]) -> None:
    """Download pieces, `CONNECTIONS` at a time, and record them. ``on_progress`` is called with bytes that were written.

    Raises:
        CheckpointError: the origin cannot be reached, refuses, or changed. What was recorded is kept.
        LoadError: the copy cannot be written.
    """

    def fetch(piece: FileRange) -> tuple[FileRange, str]:
        try:
            part = files.part(piece.name, piece.start, piece.end - piece.start)
        except (MissingFileError, ChangedFileError) as error:
            raise CheckpointError(
                f"{piece.name} of {files.origin} changed or was removed while it was pulled", hint="pull again"
            ) from error
        if len(part.data) != piece.end - piece.start:
            raise CheckpointError(
                f"{piece.name} of {files.origin} ends earlier than its header says", hint="pull again"
            )
        return piece, copy.write(piece, part.data)

    written: dict[FileRange, str] = {}
    running: set[Future[tuple[FileRange, str]]] = set()
    pool = ThreadPoolExecutor(CONNECTIONS)
    synced = time.monotonic()
    todo = iter(pieces)
    try:
        while True:
            while len(running) < CONNECTIONS and (piece := next(todo, None)) is not None:
                running.add(pool.submit(fetch, piece))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                piece, sha = future.result()
                written[piece] = sha
                on_progress(piece.end - piece.start)
            if time.monotonic() - synced >= SYNC_S:
                copy.record(written)
                written.clear()
                synced = time.monotonic()
    except OSError as error:
        raise LoadError(f"the copy cannot be written: {error.strerror or error}", hint="check the disk") from error
    finally:
        pool.shutdown(cancel_futures=True)
        for future in running:
            if not future.cancelled() and future.exception() is None:
                written.setdefault(*future.result())
        copy.record(written)


def save_small(files: RemoteFiles, names: Iterable[str], folder: Path) -> None:
    """Download those of the files beside the shards that a model needs, whole: configs, index, tokenizer.

    Raises:
        CheckpointError: one of them cannot be read, or is too large.
    """
    wanted = (CONFIG, QUANTISATION, INDEX_NAME, *RUNNING)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in wanted):
            continue
        try:
            content = files.read(name, SMALL_BYTES)
        except LimitError as error:
            raise CheckpointError(f"{name} of {files.origin} has {error}", hint=error.hint) from error
        new = folder / f".{name}.new"
        new.write_bytes(content)
        new.replace(folder / name)


def require_room(folder: Path, pieces: Iterable[FileRange]) -> None:
    """Check that the disk has room for pieces.

    Raises:
        LoadError: it has not.
    """
    needed, free = sum(p.end - p.start for p in pieces), shutil.disk_usage(folder).free
    if needed > free:
        raise LoadError(
            f"{folder}: {gib(needed)} are to be pulled, and the disk has {gib(free)} left",
            hint="give another --local-dir",
        )
