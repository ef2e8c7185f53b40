"""A partial copy of a checkpoint while it is written: `LocalCopy`. What it has, and how it is read, is `Coverage`'s.

Each range is written, synced, and only then recorded in the copy's manifest with its SHA-256, so that an interruption at any
point loses no more than the ranges that were not recorded yet. One process writes a copy at a time; the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import orjson

from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.partial import (
    LOCK,
    MANIFEST,
    SUFFIX,
    VERSION,
    Coverage,
    PartialFile,
    Span,
    merged,
    read_coverage,
)
from loadmaster.errors import CheckpointError, LoadError

PIECE_BYTES = 2**23
"""Most bytes of one request; each is in memory once."""
GAP_BYTES = 2**17
"""Ranges that are no further apart are requested as one: a request costs about as much as these bytes."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileRange:
    """A range of one file."""

    name: str
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Its length."""
        return self.end - self.start


class LocalCopy:
    """A partial copy that is being written, by this process alone until it is closed.

    ``option`` is the command line's option that names the folder, for hints. ``on_wait`` is called if another process writes
    the copy, before waiting for it.

    Raises:
        CheckpointError: the folder holds something else: another checkpoint, or another commit of this one.
        LoadError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        sizes: Mapping[str, tuple[int, str | None]],
        *,
        option: str = "--local-dir",
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.option = option
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}
        self._spans: dict[str, list[Span]] = {n: [] for n in sizes}
        self._sizes = dict(sizes)
        with not_written(folder, option):
            folder.mkdir(parents=True, exist_ok=True)
            self._owned = _owned(folder / LOCK, on_wait)
        try:
            known = read_coverage(folder)
            if known is None:
                self._refuse_others(folder)
            else:
                self._resume(known, origin)
            with not_written(folder, option):
                self._manifest = self._begin(origin, known)
        except BaseException:
            os.close(self._owned)
            raise

    def _refuse_others(self, folder: Path) -> None:
        others = [p.name for p in folder.iterdir() if p.name.endswith((".safetensors", SUFFIX))]
        if others:
            raise CheckpointError(
                f"{folder} holds shards that were not pulled, such as {others[0]}", hint=f"give an empty {self.option}"
            )

    def _resume(self, known: Coverage, origin: Origin) -> None:
        was, now = known.origin, origin
        if (was.kind, was.name.rstrip("/"), was.commit) != (now.kind, now.name.rstrip("/"), now.commit):
            raise CheckpointError(
                f"{self.folder} holds part of {was}, and {now} was requested", hint=f"give another {self.option}"
            )
        for name, file in known.files.items():
            if self._sizes.get(name) != (file.size, file.etag):
                raise CheckpointError(
                    f"{self.folder}: {name} changed at its origin since a part of it was pulled",
                    hint=f"give another {self.option}",
                )
            path = next((p for p in (self.folder / name, self.folder / f"{name}{SUFFIX}") if p.exists()), None)
            if path is None:
                continue  # removed by hand: its ranges are pulled again
            if path.stat().st_size != file.size:
                raise CheckpointError(
                    f"{path} has another size than was pulled", hint=f"remove it, or give another {self.option}"
                )
            self._spans[name] = list(file.spans)

    def _begin(self, origin: Origin, known: Coverage | None) -> int:
        """Write the manifest anew, with the ranges of an earlier pull that are still on disk; return its descriptor."""
        lines: list[dict[str, object]] = [{"loadmaster partial": VERSION, "origin": origin.as_json()}]
        lines += ({"file": n, "size": size, "etag": etag} for n, (size, etag) in self._sizes.items())
        path, new = self.folder / MANIFEST, self.folder / f"{MANIFEST}.new"
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

    def begin_with(self, heads: Mapping[str, bytes]) -> None:
        """Write the first bytes of files, which were read with their headers, where they are not there yet.

        Raises:
            LoadError: they cannot be written.
        """
        new = {FileRange(n, 0, len(head)) for n, head in heads.items() if self._have(n).lacking(0, len(head))}
        with not_written(self.folder, self.option):
            self.record({piece: self.write(piece, heads[piece.name]) for piece in new})

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
                path = self.folder / f"{name}{SUFFIX}"
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
            partial = self.folder / f"{name}{SUFFIX}"
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
            partial.rename(self.folder / name)
        self._sync_folder()

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close all files, and let other processes write the copy."""
        for descriptor in (*self._files.values(), self._manifest, self._owned):
            os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> LocalCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def not_written(folder: Path, option: str) -> Iterator[None]:
    """Turn what the system raises while a copy is written into a `LoadError`; ``option`` names the folder on the command line."""
    try:
        yield
    except OSError as error:
        raise LoadError(
            f"the copy in {folder} cannot be written: {error.strerror or error}",
            hint=f"check the folder and its disk, or give another {option}",
        ) from error


def _owned(path: Path, on_wait: Callable[[], None]) -> int:
    """Return the descriptor of a lock file once this process holds its lock, which ends with the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
