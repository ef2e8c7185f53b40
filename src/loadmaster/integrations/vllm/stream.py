"""Streams selected tensors of a checkpoint in file order, each in its own memory.

Readers read ahead, within a budget of bytes. A loader may keep a tensor as long as it needs: its memory is reused only when
no tensor uses it any more, which with most loaders is at once. Touching new memory costs more than the copy into it.

For a model on a GPU the memory is page-locked. From other memory the driver copies at a tenth of the link's speed.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from loadmaster.checkpoint import Checkpoint, Store
from loadmaster.checkpoint.unchanged import check_unchanged
from loadmaster.errors import LoadError, UnsupportedError
from loadmaster.loader.cuda.page_lock import page_lock, page_unlock
from loadmaster.torch_dtypes import TORCH

CHUNK_BYTES: Final = 4 * 2**20
"""Most bytes of one read: a large tensor is read by several readers."""
HUGE_BYTES: Final = 2**21
"""Buffers of at least this size request huge pages."""
LOCKED_BYTES: Final = 2**18
"""Smaller buffers are not page-locked: the driver passes their bytes on with the command to copy."""
WATCHED: Final = 16
"""How many of the last tensors are watched for reuse of their memory; a loader's generators hold one or two."""

_Reading: TypeAlias = "tuple[int, _Memory, list[Future[None]]]"


def stream_tensors(
    checkpoint: Checkpoint,
    ids: Sequence[int],
    store: Store,
    *,
    staging_bytes: int,
    num_readers: int,
    page_locked: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors with the given ids (in rising order), names as stored.

    At most ``staging_bytes`` are in memory, or the tensor that is used and the next if these are larger. On the host they are
    also no more than two chunks a reader, because memory that is soon reused is still in the processor's cache; with
    ``page_locked`` the tensors are for a GPU, which copies from the memory itself. The sizes and time stamps of the files are
    compared with those at header time before the first byte and after the last.

    Raises:
        UnsupportedError: torch lacks a number format; raised before anything is read.
        LoadError: a file changed, ended early or could not be read; names file and tensor.
    """
    table = checkpoint.table
    _check_formats(checkpoint, ids)
    _check_files(checkpoint, ids, store)
    waiting: deque[_Reading] = deque()
    held = 0
    budget = staging_bytes if page_locked else min(staging_bytes, 2 * num_readers * CHUNK_BYTES)
    buffers = _Buffers(budget, page_locked=page_locked)
    upcoming = deque(ids)
    pool = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")

    def read_ahead() -> None:
        nonlocal held
        while upcoming and (not waiting or held + int(table.nbytes[upcoming[0]]) <= budget):
            i = upcoming.popleft()
            memory = buffers.take(int(table.nbytes[i]))
            waiting.append((i, memory, _begin(pool, checkpoint, i, memory, store)))
            held += int(table.nbytes[i])

    try:
        read_ahead()
        while waiting:
            i, memory, reads = waiting.popleft()
            read_ahead()  # the next tensor is read while this one is used, however large both are
            for read in reads:
                read.result()
            data = buffers.hand_out(memory, int(table.nbytes[i]))
            signature = table.signatures[table.signature[i]]
            # unaligned bytes in the file are aligned in memory, because a mapping begins at a page
            yield table.names[i], data.view(TORCH[signature.dtype]).view(signature.shape)
            held -= data.numel()
            del data
            read_ahead()
        _check_files(checkpoint, ids, store)
    finally:
        pool.shutdown(cancel_futures=True)


class _Memory(mmap.mmap):
    """Anonymous memory, page-locked after `lock` until it is freed: when no tensor uses it, and nothing else."""

    _address: int | None = None

    def lock(self) -> None:
        """Page-lock it, unless that was done before."""
        if self._address is None and len(self) >= LOCKED_BYTES:
            address = int(np.frombuffer(self, dtype=np.uint8).ctypes.data)
            page_lock(address, len(self))
            self._address = address

    def __del__(self) -> None:
        """Unlock it before its pages are returned."""
        if self._address is not None:
            torch.cuda.synchronize()  # a loader may have begun a copy and not waited for it
            page_unlock(self._address)


class _Buffers:
    """Memory for tensors, reused when its last tensor is gone. Keeps at most ``limit`` free bytes.

    If it is ``page_locked``, the device may still copy from it when its last tensor is gone, so it is waited for.
    """

    def __init__(self, limit: int, *, page_locked: bool = False) -> None:
        self._limit, self._page_locked = limit, page_locked
        self._free: list[_Memory] = []
        self._out: deque[tuple[weakref.ref[Any], _Memory]] = deque(maxlen=WATCHED)

    def take(self, num_bytes: int) -> _Memory:
        """Return memory of at least that size that no tensor uses."""
        self._gather()
        fits = (i for i, m in enumerate(self._free) if num_bytes <= len(m) <= 2 * num_bytes + mmap.PAGESIZE)
        if (index := next(fits, None)) is not None:
            return self._free.pop(index)
        memory = _Memory(-1, max(num_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if num_bytes >= HUGE_BYTES:
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def hand_out(self, memory: _Memory, num_bytes: int) -> torch.Tensor:
        """Return memory as a tensor, and watch for the end of its last view."""
        if self._page_locked:
            memory.lock()  # only now, when the readers have made its pages
        array = np.frombuffer(memory, dtype=np.uint8, count=num_bytes)
        self._out.append((weakref.ref(array), memory))
        return torch.from_numpy(array)  # the storage holds the array as long as any tensor holds the storage

    def _gather(self) -> None:
        unused = [e for e in self._out if e[0]() is None]
        if unused and self._page_locked:
            torch.cuda.synchronize()  # as in `_Memory.__del__`
        held = sum(len(m) for m in self._free)
        for entry in unused:
            self._out.remove(entry)
            if held + len(entry[1]) <= self._limit:
                self._free.append(entry[1])
                held += len(entry[1])


def _begin(
    pool: ThreadPoolExecutor, checkpoint: Checkpoint, i: int, memory: _Memory, store: Store
) -> list[Future[None]]:
    table = checkpoint.table
    name, start = checkpoint.files[table.file[i]].name, int(table.start[i])
    view = memoryview(memory)[: int(table.nbytes[i])]

    def read(at: int) -> None:
        try:
            store.readinto(name, start + at, [view[at : at + CHUNK_BYTES]])
        except (LoadError, OSError) as error:
            raise LoadError(f"{name}: reading {table.names[i]} failed: {error}") from error

    return [pool.submit(read, at) for at in range(0, len(view), CHUNK_BYTES)]


def _check_formats(checkpoint: Checkpoint, ids: Sequence[int]) -> None:
    table = checkpoint.table
    for i in ids:
        dtype = table.signatures[table.signature[i]].dtype
        if dtype not in TORCH:
            raise UnsupportedError(
                f"{table.names[i]} is stored as {dtype}, which torch does not support", hint="use --load-format auto"
            )


def _check_files(checkpoint: Checkpoint, ids: Sequence[int], store: Store) -> None:
    check_unchanged(
        store,
        (checkpoint.files[number] for number in sorted({int(checkpoint.table.file[i]) for i in ids})),
        since="its header was read",
        hint="start again when the files no longer change",
    )
