"""Tensors of a checkpoint, some of them, one after another in file order, each in memory of its own.

Readers work ahead of whoever takes the tensors, but never further than a budget of bytes. Nothing is reused: a loader may
keep what it was given as long as it likes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import torch

from loadmaster.checkpoint import Checkpoint, Store
from loadmaster.errors import LoadError, UnsupportedError
from loadmaster.loader.memory import TORCH
from loadmaster.loader.readers import change_of

CHUNK_BYTES: Final = 16 * 2**20
"""Most bytes of one read: a large tensor is read by several readers."""


def stream_tensors(
    checkpoint: Checkpoint, ids: Sequence[int], store: Store, *, staging_bytes: int, num_readers: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors with the given ids (in rising order), names as stored.

    What is being read, and has been and was not taken yet, is at most ``staging_bytes``, or one tensor where that is
    larger. The files that are read are held against the headers' sizes and time stamps before the first byte and after
    the last.

    Raises:
        UnsupportedError: a number format that torch does not have; before anything is read.
        LoadError: a file changed, ended early or could not be read; names file and tensor.
    """
    table = checkpoint.table
    _check_formats(checkpoint, ids)
    _check_files(checkpoint, ids, store)
    waiting: deque[tuple[int, torch.Tensor, list[Future[None]]]] = deque()
    ahead = 0
    rest = iter(ids)
    upcoming = next(rest, None)
    pool = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")
    try:
        while waiting or upcoming is not None:
            while upcoming is not None and (not waiting or ahead + int(table.nbytes[upcoming]) <= staging_bytes):
                data = torch.empty(int(table.nbytes[upcoming]), dtype=torch.uint8, device="cpu")
                waiting.append((upcoming, data, _begin(pool, checkpoint, upcoming, data, store)))
                ahead += data.numel()
                upcoming = next(rest, None)
            i, data, reads = waiting.popleft()
            for read in reads:
                read.result()
            signature = table.signatures[table.signature[i]]
            # bytes that were not aligned in the file are in memory: an allocation begins at a multiple of 64
            yield table.names[i], data.view(TORCH[signature.dtype]).view(signature.shape)
            ahead -= data.numel()
            del data
        _check_files(checkpoint, ids, store)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor, checkpoint: Checkpoint, i: int, data: torch.Tensor, store: Store
) -> list[Future[None]]:
    table = checkpoint.table
    name, start = checkpoint.files[table.file[i]].name, int(table.start[i])
    array: Any = data.numpy()
    view = memoryview(array)

    def read(at: int) -> None:
        try:
            store.readinto(name, start + at, [view[at : at + CHUNK_BYTES]])
        except (LoadError, OSError) as error:
            raise LoadError(f"{name}: reading {table.names[i]} failed: {error}") from error

    return [pool.submit(read, at) for at in range(0, data.numel(), CHUNK_BYTES)]


def _check_formats(checkpoint: Checkpoint, ids: Sequence[int]) -> None:
    table = checkpoint.table
    for i in ids:
        dtype = table.signatures[table.signature[i]].dtype
        if dtype not in TORCH:
            raise UnsupportedError(
                f"{table.names[i]} is stored as {dtype}, which torch has no tensors of", hint="use --load-format auto"
            )


def _check_files(checkpoint: Checkpoint, ids: Sequence[int], store: Store) -> None:
    for number in sorted({int(checkpoint.table.file[i]) for i in ids}):
        opened = checkpoint.files[number]
        try:
            change = change_of(store, opened)
        except OSError as error:
            raise LoadError(f"{opened.name}: {error.strerror or error}") from error
        if change is not None:
            raise LoadError(
                f"{opened.name} changed since its header was read: {change}",
                hint="start again once the files are at rest",
            )
