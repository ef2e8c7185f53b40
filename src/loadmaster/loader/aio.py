"""Reads that the C library's own threads carry out: POSIX asynchronous I/O.

Sixteen Python threads that each read 4 MiB at a time spend more on handing the interpreter's lock to one another than on
reading. Here one thread asks and is told; the bytes are moved by threads that know no interpreter. The library serves
requests of one descriptor one after another, so each gets a duplicate of its own. Source: aio(7); glibc's ``aio.h``,
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

MAX_THREADS: Final = 64
"""Most reads that the library carries out at the same time."""

_SIGEV_NONE: Final = 1


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
        ("internal", ctypes.c_byte * 32),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_byte * 32),
    )


_UNUSED = ("locks", "usedba", "debug")


class _Settings(ctypes.Structure):
    """``struct aioinit``."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("threads", "num", *["locks", "usedba", "debug"], "numusers", "idle", "rest")
    )


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True), ctypes.PyDLL(None, use_errno=True)


@cache
def is_available() -> bool:
    """Whether the C library is glibc on a 64-bit machine, and reads a file as it should."""
    if platform.libc_ver()[0] != "glibc" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    if not all(hasattr(_library()[0], name) for name in ("aio_read", "aio_init")):
        return False
    _library()[0].aio_init(ctypes.byref(_Settings(threads=MAX_THREADS, num=2 * MAX_THREADS, idle=1)))
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        buffer = ctypes.create_string_buffer(8)
        reads = Reads(1)
        reads.begin(0, file.fileno(), 3, ctypes.addressof(buffer), 5)
        return list(reads.wait()) == [(0, 5)] and buffer.value == b"34567"


class Reads:
    """Up to ``count`` reads under way, told apart by numbers from 0. To be used by one thread."""

    def __init__(self, count: int) -> None:
        self._controls = (_Control * count)()
        self._address = [ctypes.addressof(c) for c in self._controls]
        self._list = (ctypes.c_void_p * count)()
        self._under_way: dict[int, int] = {}  # number -> descriptor
        outer, quick = _library()
        self._suspend = outer.aio_suspend
        self._suspend.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._read, self._error, self._return = quick.aio_read, quick.aio_error, quick.aio_return
        for function in (self._read, self._error, self._return):
            function.argtypes = (ctypes.c_void_p,)
        self._return.restype = ctypes.c_ssize_t

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, number: int, descriptor: int, offset: int, address: int, num_bytes: int) -> None:
        """Begin to read a range of a file to an address.

        Raises:
            OSError: the library cannot take another read.
        """
        own = os.dup(descriptor)
        control = self._controls[number]
        control.fildes, control.offset, control.buffer, control.nbytes = own, offset, address, num_bytes
        control.sigev_notify = _SIGEV_NONE
        if self._read(self._address[number]):
            os.close(own)
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._under_way[number] = own
        self._list[number] = self._address[number]

    def wait(self) -> Sequence[tuple[int, int]]:
        """Return the reads that are done, once at least one is: their numbers, and the bytes read or minus the error's code."""
        done = self.poll()
        while not done:
            if self._suspend(self._list, len(self._list), None) and ctypes.get_errno() not in (
                errno.EINTR,
                errno.EAGAIN,
            ):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            done = self.poll()
        return done

    def poll(self) -> list[tuple[int, int]]:
        """Return the reads that are done by now."""
        done = []
        for number in list(self._under_way):
            code = self._error(self._address[number])
            if code != errno.EINPROGRESS:
                got = self._return(self._address[number])
                os.close(self._under_way.pop(number))
                self._list[number] = None
                done.append((number, -code if code else got))
        return done

    def finish(self) -> None:
        """Return when no read is under way any more; what they read is nobody's concern."""
        while self._under_way:
            self.wait()
