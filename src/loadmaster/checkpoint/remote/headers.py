"""Reads the headers of remote shards, several at a time, with as few requests and bytes as possible.

A header's length is in its first eight bytes. To read them first would take two requests a shard, so the first request is
for as many bytes as the index suggests: the length of an entry varies little beyond its tensor's name. Where the header is
longer, a second request reads the rest.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from loadmaster.checkpoint.canonical import read_canonical
from loadmaster.checkpoint.columns import AHEAD_BYTES, HeaderText, Read
from loadmaster.checkpoint.header import HeaderError, check_length
from loadmaster.checkpoint.index import Index
from loadmaster.checkpoint.remote.cache import HeaderCache
from loadmaster.checkpoint.remote.files import (
    CONNECTIONS,
    ChangedFileError,
    HeaderProgress,
    MissingFileError,
    RemoteFile,
    RemoteFiles,
)
from loadmaster.findings import Finding
from loadmaster.limits import HEADER_BYTES

UNKNOWN_BYTES = 2**13
"""Bytes of the first request where no index says how many tensors a shard has."""
ENTRY_BYTES = len('"":{"dtype":"F8_E4M3","shape":[6144,12288],"data_offsets":[,]},')
"""An entry without its name and the digits of its two offsets; most are a few bytes shorter."""
FRAME_BYTES = 8 + len('{"__metadata__":{"format":"pt"}}') + 8
"""The length, braces and metadata, and padding."""
OFFSET_DIGITS = 10
"""Digits of an offset in a file of unknown size: shards are usually smaller than 10 GB."""


@dataclass(slots=True)
class Tally:
    """What reading the headers took: ``headers``, how many of them the cache had, requests, and bytes."""

    headers: int = 0
    cached: int = 0
    requests: int = 0
    fetched_bytes: int = 0
    header_bytes: int = 0


class HeaderReader:
    """Reads the headers of one place's shards, through the cache.

    With ``keeps_heads``, ``heads`` has the first bytes of each shard, as many as were read: header, and what came with it.
    """

    def __init__(self, files: RemoteFiles, cache: HeaderCache | None, *, keeps_heads: bool = False) -> None:
        self._files = files
        self._cache = cache
        self._lock = threading.Lock()
        self._keeps_heads = keeps_heads
        self.heads: dict[str, bytes] = {}
        self.tally = Tally()

    def read_all(
        self,
        names: Sequence[str],
        index: Index | None,
        listing: Mapping[str, RemoteFile],
        progress: HeaderProgress,
    ) -> Iterator[Read]:
        """Yield each header, in order; `CONNECTIONS` at a time are read ahead."""
        guesses = _Guesses(index, listing)
        ahead = 2 * CONNECTIONS
        pool = ThreadPoolExecutor(CONNECTIONS)

        def read(name: str, most: int = AHEAD_BYTES) -> Read | None:
            return self._read(name, listing.get(name, RemoteFile()), guesses, most)

        try:
            waiting = deque(pool.submit(read, n) for n in names[:ahead])
            for i, name in enumerate(names):
                yield waiting.popleft().result() or read(name, HEADER_BYTES.value) or _changed(name, "it changed")
                progress(i + 1, len(names))
                if i + ahead < len(names):
                    waiting.append(pool.submit(read, names[i + ahead]))
        finally:
            pool.shutdown(cancel_futures=True)
        if self._cache is not None:
            self._cache.trim()

    def _read(self, name: str, file: RemoteFile, guesses: _Guesses, most: int) -> Read | None:
        """Return a header, or why there is none; None where it is longer than ``most`` bytes."""
        try:
            head, size = self._kept(name, file) or self._fetched(name, file, guesses[name], most)
        except HeaderError as error:
            return error
        except MissingFileError:
            message = f"there is no such file at {self._files.origin}"
            hint = "the index names it: the upload is incomplete, or the index belongs to another revision"
            return HeaderError(Finding("shard-missing", "error", message, file=name, hint=hint))
        except ChangedFileError as error:
            return _changed(name, str(error))
        if head is None:
            return None
        text = head[8 : 8 + int.from_bytes(head[:8], "little")]
        digest = hashlib.sha256(f"{name}\0{size}\0".encode())
        digest.update(text)
        with self._lock:
            self.tally.headers += 1
            self.tally.header_bytes += 8 + len(text)
            if self._keeps_heads:
                self.heads[name] = head
        return HeaderText(text, size, 0, digest.digest(), read_canonical(text))

    def _kept(self, name: str, file: RemoteFile) -> tuple[bytes, int] | None:
        """Return the file's first bytes, of which the cache has the header, and its size."""
        key = None if file.size is None else self._files.cache_key(name, file.size, file.etag)
        text = self._cache.get(key) if self._cache is not None and key is not None else None
        if text is None or file.size is None:
            return None
        with self._lock:
            self.tally.cached += 1
        return len(text).to_bytes(8, "little") + text, file.size

    def _fetched(self, name: str, file: RemoteFile, guess: int, most: int) -> tuple[bytes | None, int]:
        """Return the file's first bytes, to the end of its header or further, and its size; None for a header beyond ``most``."""
        if file.size == 0:
            check_length(name, b"", 0)
        first = self._files.part(name, 0, min(guess, file.size or guess))
        self._count(len(first.data))
        if file.size is not None and first.size != file.size:
            raise ChangedFileError(
                f"the listing says that it has {file.size:,} bytes, but the server sends a file of {first.size:,}"
            )
        length = check_length(name, first.data, first.size)
        if length > most:
            return None, first.size
        head = first.data
        if len(head) < 8 + length:
            rest = self._files.part(name, len(first.data), 8 + length - len(first.data))
            self._count(len(rest.data))
            if (rest.size, rest.etag) != (first.size, first.etag):
                raise ChangedFileError("it changed between two requests")
            head += rest.data
        key = self._files.cache_key(name, first.size, first.etag)
        if self._cache is not None and key is not None:
            self._cache.put(key, head[8 : 8 + length])
        return head, first.size

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.tally.requests += 1
            self.tally.fetched_bytes += num_bytes


class _Guesses:
    """`estimates`, made when the first one is needed: not where the cache has all headers."""

    def __init__(self, index: Index | None, listing: Mapping[str, RemoteFile]) -> None:
        self._lock = threading.Lock()
        self._inputs = index, listing
        self._made: dict[str, int] | None = None

    def __getitem__(self, name: str) -> int:
        with self._lock:
            if self._made is None:
                self._made = estimates(*self._inputs)
        return self._made.get(name, UNKNOWN_BYTES)


def estimates(index: Index | None, listing: Mapping[str, RemoteFile]) -> dict[str, int]:
    """Return, for each shard that an index names, how many bytes its header takes up to, with the eight before it.

    >>> estimates(Index.of({"model.norm.weight": "a"}), {"a": RemoteFile(1000)})
    {'a': 136}
    """
    if index is None:
        return {}
    counts = np.bincount(index.place, minlength=len(index.files)).tolist()
    lengths = np.bincount(index.place, index.names.ends - index.names.begins, len(index.files)).tolist()
    return {
        file: FRAME_BYTES + int(length) + count * (ENTRY_BYTES + 2 * _digits(listing.get(file)))
        for file, count, length in zip(index.files, counts, lengths, strict=True)
    }


def _digits(file: RemoteFile | None) -> int:
    return OFFSET_DIGITS if file is None or file.size is None else len(str(file.size))


def _changed(name: str, message: str) -> HeaderError:
    hint = "run the command again; if it says the same, the upload is not finished, or a proxy keeps an old copy"
    return HeaderError(Finding("shard-unreadable", "error", message, file=name, hint=hint))
