"""What a remote place offers: the protocol `RemoteFiles`, with names, small files, and ranges of large ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loadmaster.checkpoint.index import INDEX_NAME, IndexRead
from loadmaster.checkpoint.origin import Origin
from loadmaster.limits import Limit

CONNECTIONS = 16
"""Requests at a time. More do not help where one takes 20 ms and brings 100 kB, and servers limit them."""

HeaderProgress = Callable[[int, int], None]
"""Takes how many headers were read, and how many there are."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a listing states it: its size in bytes, and an ETag that names its content; each None where not stated."""

    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of a file, the ``size`` of the whole in bytes, and its ETag, where the server gave one."""

    data: bytes
    size: int
    etag: str | None = None


class MissingFileError(Exception):
    """There is no such file (HTTP status 404 or 410)."""


class ChangedFileError(Exception):
    """A file is not the one that was listed, or read before; the message says how it differs."""


class RemoteFiles(Protocol):
    """The files of a checkpoint at a remote place. Safe to call from several threads."""

    only: str | None
    """The one file that was asked for; None for all."""

    @property
    def origin(self) -> Origin:
        """Where the files are."""

    @property
    def path(self) -> Path:
        """The folder where they would be on disk."""

    def listing(self) -> Mapping[str, RemoteFile]:
        """Return the files, without those in subfolders.

        Raises:
            CheckpointError: the place cannot be reached, or refuses.
        """

    def index(self) -> IndexRead:
        """Return the index, which must be in the listing."""

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file of at most ``limit`` bytes.

        Raises:
            LimitError: it has more bytes.
            MissingFileError: there is no such file.
            CheckpointError: it cannot be read.
        """

    def part(self, name: str, start: int, length: int) -> Part:
        """Return ``length`` bytes of a file from ``start`` on, fewer where the file ends.

        Raises:
            MissingFileError: there is no such file.
            ChangedFileError: the file is not the one that was listed.
            CheckpointError: the place cannot be reached, or refuses.
        """

    def running(self) -> Sequence[str]:
        """Return the names of files that running needs beside config and weights; `read` finds that some do not exist."""

    def etag(self, name: str) -> str | None:
        """Return what names the content of a shard that was read; None where the place states nothing."""

    def cache_key(self, name: str, size: int, etag: str | None) -> str | None:
        """Return a text that names a file's content; None where nothing does."""


def divided(path: str) -> tuple[str, str | None]:
    """Return the folder that a URL's path names, and the one shard in it if it names that.

    >>> divided("/a/model"), divided("/a/model/"), divided("/a/model/model.safetensors.index.json")
    (('/a/model', None), ('/a/model', None), ('/a/model', None))
    >>> divided("/a/model/model.safetensors")
    ('/a/model', 'model.safetensors')
    """
    folder, _, name = path.rpartition("/")
    if name.endswith(".safetensors"):
        return folder, name
    return (path if name and name != INDEX_NAME else folder), None
