"""Reads by the C library's own threads: POSIX asynchronous I/O.

Sixteen Python threads that each read 4 MiB at a time spend more time on passing the interpreter lock than on reading. Here
one Python thread submits reads and collects results; the C library's threads move the bytes and never need the lock. The
library serves requests of one descriptor one after another, so each request gets a duplicate descriptor.

Source: aio(7); glibc's ``aio.h``,
whose 64-bit layout of ``struct aiocb`` is used here and is checked before the first use.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np

_SIGEV_NONE: Final = 1
_IDLE: Final = -1
"""In place of a code: no read is under way."""
_AGAIN: Final = (errno.EINTR, errno.EAGAIN)


class _Control(ctypes.Structure):
    """``struct aiocb``."""

    _fields_ = (
        ("fildes", ctypes.c_int),
        ("opcode", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("nbytes", ctypes.c_size_t),
        ("sigev_value", ctypes.c_void_p),
        ("sigev_signo", ctypes.c_int),
        ("sigev_notify", ctypes.c_int),
        ("sigev_rest", ctypes.c_byte * 48),
        ("next", ctypes.c_void_p),
        ("abs_priority", ctypes.c_int),
        ("policy", ctypes.c_int),
        ("code", ctypes.c_int),
        ("got", ctypes.c_ssize_t),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_byte * 32),
    )


_CODES: Final = np.dtype(
    {
        "names": ["code"],
        "formats": [np.int32],
        "offsets": [_Control.code.offset],
        "itemsize": ctypes.sizeof(_Control),
    }
)
"""What the library writes when a read is done. All at once are looked at thus, without a call for each."""


class _Settings(ctypes.Structure):
    """``struct aioinit``."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("threads", "num", "locks", "usedba", "debug", "numusers", "idle", "rest")
    )


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True), ctypes.PyDLL(None, use_errno=True)


@cache
def is_available(num_threads: int) -> bool:
    """Whether the C library is glibc on a 64-bit machine, and reads a file as it should.

    It reads with ``num_threads`` threads, unless it has read in this process before; further reads wait.
    """
    if platform.libc_ver()[0] != "glibc" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if not all(hasattr(_library()[0], name) for name in ("aio_read", "aio_init")):
        return False
    _library()[0].aio_init(ctypes.byref(_Settings(threads=num_threads, num=2 * num_threads, idle=1)))
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        buffer = ctypes.create_string_buffer(8)
        reads = Reads([ctypes.addressof(buffer)])
        try:
            reads.begin(0, file.fileno(), 3, 5)
            return reads.wait() == [(0, 5)] and buffer.value == b"34567"
        finally:
            reads.close()


class Reads:
    """Reads into memory at ``addresses``, one read at a time into each, named by the address's index. For one thread."""

    def __init__(self, addresses: Sequence[int]) -> None:
        count = len(addresses)
        self._controls = (_Control * count)()
        for control, address in zip(self._controls, addresses, strict=True):
            control.buffer, control.sigev_notify = address, _SIGEV_NONE
        self._codes = np.frombuffer(memoryview(self._controls), dtype=_CODES)["code"]
        self._codes[:] = _IDLE
        self._places = [ctypes.addressof(c) for c in self._controls]
        self._list = (ctypes.c_void_p * count)()
        self._files = [-1] * count  # whose duplicate each has
        self._number = 0
        outer, quick = _library()
        self._suspend = outer.aio_suspend
        self._suspend.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._read = quick.aio_read
        self._read.argtypes = (ctypes.c_void_p,)
        self._return = quick.aio_return
        self._return.argtypes, self._return.restype = (ctypes.c_void_p,), ctypes.c_ssize_t

    def __len__(self) -> int:
        return self._number

    def begin(self, number: int, descriptor: int, offset: int, num_bytes: int) -> None:
        """Begin to read a range of a file.

        Raises:
            OSError: the library cannot take another read.
        """
        control = self._controls[number]
        if self._files[number] != descriptor:
            self._forget(number)
            control.fildes, self._files[number] = os.dup(descriptor), descriptor
        control.offset, control.nbytes = offset, num_bytes
        if self._read(self._places[number]):
            self._codes[number] = _IDLE
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._list[number] = self._places[number]
        self._number += 1

    def wait(self) -> list[tuple[int, int]]:
        """Wait for at least one read. Return those that are done: their indices, and the bytes read, or minus the error code."""
        done = self._done()
        while not done:
            if self._suspend(self._list, len(self._list), None) and ctypes.get_errno() not in _AGAIN:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            done = self._done()
        return done

    def _done(self) -> list[tuple[int, int]]:
        done = []
        for number in np.flatnonzero((self._codes != errno.EINPROGRESS) & (self._codes != _IDLE)).tolist():
            code, got = int(self._codes[number]), self._return(self._places[number])
            self._codes[number] = _IDLE
            self._list[number] = None
            self._number -= 1
            done.append((number, -code if code else got))
        return done

    def _forget(self, number: int) -> None:
        if self._files[number] >= 0:
            os.close(self._controls[number].fildes)
            self._files[number] = -1

    def close(self) -> None:
        """Wait until no read is under way (their results are dropped), and close the duplicates."""
        while self._number:
            self.wait()
        for number in range(len(self._files)):
            self._forget(number)
