"""Downloads ranges of a checkpoint's shards into a local copy, which `open_checkpoint` and a loader take like the whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path

from loadmaster.checkpoint.config import config_files
from loadmaster.checkpoint.folder import Checkpoint
from loadmaster.checkpoint.index import INDEX_NAME
from loadmaster.checkpoint.partial import Span
from loadmaster.checkpoint.remote.files import CONNECTIONS, ChangedFileError, MissingFileError, RemoteFiles
from loadmaster.checkpoint.remote.folder import RemoteFolder
from loadmaster.checkpoint.remote.local_copy import FileRange, LocalCopy, not_written
from loadmaster.errors import CheckpointError, LoadError
from loadmaster.findings import gib
from loadmaster.limits import Limit, LimitError

SMALL_BYTES = Limit(
    200_000_000, "bytes of a file beside the shards", "about 35,000,000 (a tokenizer)", "a file of gigabytes"
)
"""A repository holds anything; only what a model needs is downloaded, and no such file is larger."""
AHEAD = 16 * CONNECTIONS
"""Requests that wait for a connection, so that none is idle while what was written is synced."""
SYNC_S = 1.0
"""How often what was written is synced and recorded."""

PullProgress = Callable[[int, int], None]
"""Takes how many bytes were downloaded, and how many will be."""


def pull_into(
    folder: Path,
    source: RemoteFolder,
    checkpoint: Checkpoint,
    wanted: Mapping[str, Iterable[Span]],
    *,
    option: str,
    say: Callable[[str], None],
    on_progress: PullProgress,
    names_whole: bool = True,
) -> int:
    """Download what ``folder`` lacks of ``wanted``, ranges by shard, and the small files; return how many bytes of shards.

    ``source`` has the first bytes of the shards, with the headers: they are not downloaded again. ``names_whole``: shards
    that become whole are compared with the SHA-256 that the hub states, which reads them once more, and get their names.
    ``option`` is the command line's option that names the folder. ``say`` receives a line before anything is downloaded.

    Raises:
        CheckpointError: the origin cannot be reached, refuses, or changed; or the folder holds something else. What was
            downloaded is kept.
        LoadError: the copy cannot be written, or its disk has too little room.
    """
    sizes = {f.name: (f.size, source.files.etag(f.name)) for f in checkpoint.files}
    waiting = partial(say, f"waiting for another process that downloads to {folder}")
    with LocalCopy(folder, checkpoint.origin, sizes, option=option, on_wait=waiting) as copy:
        copy.begin_with(source.heads)
        pieces = copy.lacking(wanted)
        total = sum(p.num_bytes for p in pieces)
        require_room(folder, total, option)
        if pieces:
            whole = sum(f.size for f in checkpoint.files)
            say(f"downloading {gib(total)} of {checkpoint.origin} ({gib(whole)}) to {folder}")
            if any(etag is None for _, etag in sizes.values()):
                say(
                    "the server states neither ETags nor modification times, so a file that changes meanwhile is not noticed"
                )
        save_small(source, copy)
        pull(source.files, copy, pieces, lambda done: on_progress(done, total))
        if names_whole:
            copy.name_whole()
    return total


def pull(files: RemoteFiles, copy: LocalCopy, pieces: Iterable[FileRange], on_progress: Callable[[int], None]) -> None:
    """Download pieces, `CONNECTIONS` at a time, and record them. ``on_progress`` is called with the bytes written so far.

    Raises:
        CheckpointError: the origin cannot be reached, refuses, or changed. What was recorded is kept.
        LoadError: the copy cannot be written.
    """

    def fetch(piece: FileRange) -> tuple[FileRange, str]:
        try:
            part = files.part(piece.name, piece.start, piece.num_bytes)
        except (MissingFileError, ChangedFileError) as error:
            raise CheckpointError(
                f"{piece.name} of {files.origin} changed or was removed while it was downloaded",
                hint="run the command again: it reads the headers anew",
            ) from error
        if len(part.data) != piece.num_bytes:
            raise CheckpointError(
                f"{piece.name} of {files.origin} ends earlier than its header says",
                hint="run the command again; if it says the same, the upload is not finished",
            )
        return piece, copy.write(piece, part.data)

    written: dict[FileRange, str] = {}
    running: set[Future[tuple[FileRange, str]]] = set()
    pool = ThreadPoolExecutor(CONNECTIONS)
    synced, num_bytes = time.monotonic(), 0
    todo = iter(pieces)
    with not_written(copy.folder, copy.option):
        try:
            while True:
                while len(running) < AHEAD and (piece := next(todo, None)) is not None:
                    running.add(pool.submit(fetch, piece))
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    piece, sha = future.result()
                    running.remove(future)
                    written[piece] = sha
                    num_bytes += piece.num_bytes
                    on_progress(num_bytes)
                if time.monotonic() - synced >= SYNC_S:
                    copy.record(written)
                    written.clear()
                    synced = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            for future in running:
                if not future.cancelled() and future.exception() is None:
                    written.setdefault(*future.result())
            copy.record(written)


def save_small(source: RemoteFolder, copy: LocalCopy) -> None:
    """Download those of the files beside the shards that a model needs, whole: configs, index, tokenizer.

    Raises:
        CheckpointError: one of them cannot be read, or is too large.
        LoadError: one of them cannot be written.
    """

    def save(name: str) -> None:
        with suppress(MissingFileError):
            content = source.files.read(name, SMALL_BYTES)
            new = copy.folder / f".{name}.new"
            new.write_bytes(content)
            new.replace(copy.folder / name)

    planned = [n for n in (*config_files(source.names()), INDEX_NAME) if source.has(n)]
    with not_written(copy.folder, copy.option), ThreadPoolExecutor(CONNECTIONS) as pool:
        try:
            list(pool.map(save, [*planned, *source.files.running()]))
        except LimitError as error:
            raise CheckpointError(f"a file of {source.origin} has {error}", hint=error.hint) from error


def require_room(folder: Path, num_bytes: int, option: str) -> None:
    """Check that the disk has room for more bytes.

    Raises:
        LoadError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise LoadError(
            f"{folder}: {gib(num_bytes)} are to be downloaded, and the disk has {gib(free)} left",
            hint=f"give another {option}",
        )
