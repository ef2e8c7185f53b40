"""What opening a checkpoint reads: the protocol `Source`, and `LocalFolder` for a folder on disk.

A source lists names, reads small files whole, and reads the headers of shards. Payload is read by a
`Store <loadmaster.checkpoint.store.Store>`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from loadmaster.checkpoint.columns import Read, read_headers
from loadmaster.checkpoint.index import Index, IndexRead, read_index
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.partial import PartialPaths
from loadmaster.checkpoint.regular import is_there, kind_of, read_regular
from loadmaster.checkpoint.small_files import SmallFiles, UnreadableError
from loadmaster.errors import CheckpointError
from loadmaster.findings import Finding
from loadmaster.limits import FOLDER_FILES, Limit


class Source(SmallFiles, Protocol):
    """The files of one checkpoint, without those in subfolders."""

    @property
    def origin(self) -> Origin:
        """Where the files are."""

    @property
    def path(self) -> Path:
        """The files' folder on disk; the one where they would be, if they are not on disk."""

    @property
    def shown(self) -> str:
        """The name of the source in messages."""

    def findings(self) -> list[Finding]:
        """Return what there is to say of the source as a whole."""

    def names(self) -> Sequence[str]:
        """Return the files' names.

        Raises:
            CheckpointError: there is no such folder, or it cannot be listed.
        """

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    def index(self) -> IndexRead:
        """Return the index, which must be among the files."""

    def remedy(self, name: str) -> str | None:
        """Return what to do about a small file that is damaged; None where nothing is known of it."""

    def headers(self, names: Sequence[str], index: Index | None) -> Iterator[Read]:
        """Yield the header of each shard in ``names``, in order.

        ``index`` is the checkpoint's, where it has one: it tells how long a header is, roughly.
        """


class LocalFolder:
    """A folder on disk; `Source`."""

    def __init__(self, path: Path, origin: Origin | None = None) -> None:
        self._path = path
        self._partial = PartialPaths(path)
        coverage = self._partial.coverage
        self._origin = origin or (replace(coverage.origin, is_local=True) if coverage else Origin("folder", str(path)))

    @property
    def origin(self) -> Origin:
        """Where the folder came from."""
        return self._origin

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def shown(self) -> str:
        """The folder's path."""
        return printable(str(self._path), 4096)

    def findings(self) -> list[Finding]:
        """Return the note that the folder is a partial copy, if it is."""
        coverage = self._partial.coverage
        return [coverage.finding()] if coverage is not None and not coverage.is_whole else []

    def names(self) -> list[str]:
        """Return the names of all entries; see `Source`."""
        if not self._path.is_dir():
            if (kind := _kind(self._path)) is not None:
                raise no_checkpoint(f"{self.shown} is {kind}", "MODEL is a folder, or one .safetensors file")
            raise no_checkpoint(f"{self.shown} does not exist", "MODEL is a folder, or a hub id such as owner/name")
        try:
            with os.scandir(self._path) as entries:
                every = [e.name for e in islice(entries, FOLDER_FILES.value + 1)]
        except OSError as error:
            hint = "check the folder's permissions, and its disk or mount"
            raise no_checkpoint(f"{self.shown} cannot be read: {error.strerror or error}", hint) from error
        if len(every) > FOLDER_FILES.value:
            raise beyond(f"{self.shown} holds more than {FOLDER_FILES.value:,} {FOLDER_FILES.of}", FOLDER_FILES)
        return self._partial.names(every)

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name, or a broken link."""
        return is_there(self._partial.path(name))

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file; see `Source`."""
        path = self._path / name
        try:
            return read_regular(path, limit)
        except OSError as error:
            raise UnreadableError(str(error.strerror or error)) from error

    def index(self) -> IndexRead:
        """Return the index; see `Source`."""
        return read_index(self)

    def remedy(self, name: str) -> str | None:
        """Say where a link leads: in the hub's cache all files are links."""
        path = self._path / name
        return f"it is a link to {printable(str(path.readlink()))}; fetch the file again" if path.is_symlink() else None

    def headers(self, names: Sequence[str], index: Index | None) -> Iterator[Read]:
        """Yield each shard's header; see `Source`."""
        return read_headers(self._partial, names)


def _kind(path: Path) -> str | None:
    """Return what a path that is not a folder is; None where there is nothing."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "a link to nothing" if path.is_symlink() else None if error.errno == errno.ENOENT else error.strerror
    return kind_of(mode)


def beyond(message: str, limit: Limit) -> CheckpointError:
    """Return the error that a checkpoint exceeds a limit."""
    finding = Finding("limit-exceeded", "error", message, hint=limit.hint)
    return CheckpointError(message, hint=limit.hint, findings=(finding,), code="limit-exceeded")


def no_checkpoint(message: str, hint: str) -> CheckpointError:
    """Return the error that there is no checkpoint."""
    finding = Finding("checkpoint-missing", "error", message, hint=hint)
    return CheckpointError(message, hint=hint, findings=(finding,))
