from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loadmaster.loader.cuda.aio import Reads, is_available

pytestmark = pytest.mark.skipif(not is_available(4), reason="the C library is not glibc")


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8).tobytes()


@pytest.fixture
def descriptor(content: bytes, tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(content)
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    yield opened
    os.close(opened)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_every_byte_of_many_reads_at_once_and_no_descriptor_stays_open(descriptor: int, content: bytes) -> None:
    size, count = 4099, 24
    memory = mmap.mmap(-1, size * count)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    before = open_descriptors()
    starts, made = iter(range(0, len(content), size)), {}
    reads = Reads([address + number * size for number in range(count)])
    at: dict[int, int] = {}

    def begin(number: int) -> None:
        if (start := next(starts, None)) is not None:
            at[number] = start
            reads.begin(number, descriptor, start, size)

    for number in range(count):
        begin(number)
    while len(reads):
        for number, got in reads.wait():
            made[at[number]] = memory[number * size : number * size + got]
            begin(number)
    assert b"".join(made[start] for start in sorted(made)) == content
    reads.close()
    assert open_descriptors() == before


def test_the_end_of_a_file_is_a_short_read_and_an_error_its_code(
    descriptor: int, content: bytes, tmp_path: Path
) -> None:
    buffer = ctypes.create_string_buffer(100)
    reads = Reads([ctypes.addressof(buffer)] * 2)
    reads.begin(1, descriptor, len(content) - 7, 100)
    assert reads.wait() == [(1, 7)]
    folder = os.open(tmp_path, os.O_RDONLY)
    reads.begin(0, folder, 0, 100)
    assert reads.wait() == [(0, -errno.EISDIR)]
    reads.close()
    os.close(folder)


def test_closing_waits_for_all(descriptor: int) -> None:
    buffer = ctypes.create_string_buffer(2**20)
    reads = Reads([ctypes.addressof(buffer) + number * 2**17 for number in range(8)])
    for number in range(8):
        reads.begin(number, descriptor, number, 2**17)
    reads.close()
    assert len(reads) == 0
