"""What the machine can do between files and GPUs, without any loader: the floors that load_gpu.py is held against.

    python benchmarks/floor.py FOLDER [--gb 16] [--results FILE]

Reads the safetensors files of FOLDER, page cache warm, into a buffer on each GPU. Nothing is planned, no tensor is known.

    link                page-locked memory to GPU, one stream, 1 GiB at a time: what the link gives
    read                page cache to page-locked memory, by threads and size of a read
    ring                the same and on to the GPU, two slots a thread, with Python's threads
    native              the same without Python (ring.c; needs a C compiler): the floor of every loader that reads
    mapping             a mapping of the file registered piece by piece, and copied from there
    peer                GPU to GPU, where there are two
    disk                direct I/O: what is read when nothing is cached

With several GPUs, ``link`` and ``ring`` feed all of them at once. Every way is run several times; the best counts.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loadmaster.loader.cuda.driver import Driver

MIB = 2**20
RING = ((8, 4), (16, 2), (16, 4), (16, 8), (32, 4))
"""Threads, and MiB of one read."""


NATIVE = ((14, 2048, 4), (14, 4096, 2), (14, 4096, 4), (28, 2048, 4), (28, 4096, 2))
"""Threads, KiB of one read, slots of a thread."""


def native(files: list[Path], devices: int, gib: float) -> dict[str, tuple[float, float]]:
    """GB/s of reading alone, and on to the GPUs, by setting; empty where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return {}
    settings = [f"{t}:{kib}:{slots}" for t, kib, slots in NATIVE if t <= (os.cpu_count() or 1)]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/ring"
        source = str(Path(__file__).with_name("ring.c"))
        subprocess.run([compiler, "-O3", "-pthread", "-o", program, source, "-ldl"], check=True)
        command = [program, str(devices), str(gib), *settings, "--", *map(str, files)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    made = {}
    for line in lines:
        setting, alone, *sent = line.split()
        made[setting] = float(alone), max(map(float, sent))
    return made


class Pinned:
    def __init__(self, num_bytes: int) -> None:
        self.memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        bytes_ = np.frombuffer(self.memory, dtype=np.uint8)
        bytes_[:: mmap.PAGESIZE] = 0
        self.address = int(bytes_.ctypes.data)
        begin = time.perf_counter()
        assert int(torch.cuda.cudart().cudaHostRegister(self.address, num_bytes, 1)) == 0
        self.seconds = time.perf_counter() - begin
        self.view = memoryview(self.memory)

    def close(self) -> None:
        torch.cuda.cudart().cudaHostUnregister(self.address)


def together(number: int, work: Callable[[int], None]) -> float:
    failures: list[BaseException] = []

    def run(i: int) -> None:
        try:
            torch.cuda.set_device(0)
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    begin = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise failures[0]
    return seconds


class Machine:
    def __init__(self, folder: Path, limit: int) -> None:
        self.driver = Driver()
        self.devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        self.files = sorted(folder.glob("*.safetensors"))
        self.descriptors = [os.open(f, os.O_RDONLY) for f in self.files]
        self.sizes = [f.stat().st_size for f in self.files]
        self.limit = min(limit, sum(self.sizes))
        room = int(0.9 * min(torch.cuda.mem_get_info(d)[0] for d in self.devices))
        self.room = min(self.limit, room)
        self.buffers = [torch.empty(self.room, dtype=torch.uint8, device=d) for d in self.devices]
        self.to = [b.data_ptr() for b in self.buffers]

    def chunks(self, size: int) -> list[tuple[int, int, int, int]]:
        """File, offset, length, and a place in the devices' buffers."""
        made, total = [], 0
        for f, n in enumerate(self.sizes):
            for offset in range(0, n, size):
                length = min(size, n - offset, self.limit - total)
                if length <= 0:
                    return made
                made.append((f, offset, length, total % (self.room - size + 1)))
                total += length
        return made

    def link(self) -> float:
        pinned = Pinned(2**30)
        rate = 0.0
        for _ in range(3):
            streams = [torch.cuda.Stream(d) for d in self.devices]
            begin = time.perf_counter()
            for _ in range(8):
                for d, s in enumerate(streams):
                    self.driver.to_device(self.to[d], pinned.address, 2**30, s.cuda_stream)
            for s in streams:
                s.synchronize()
            rate = max(rate, 8 * 2**30 * len(streams) / (time.perf_counter() - begin))
        pinned.close()
        return rate

    def ring(self, threads: int, size: int, *, send: bool) -> float:
        slots = 2
        pinned = Pinned(threads * slots * size)
        chunks = self.chunks(size)

        def reader_of(work: Any) -> Callable[[int], None]:
            def reader(i: int) -> None:
                streams = [torch.cuda.Stream(d) for d in self.devices]
                events: list[Any] = [None] * slots
                for turn, (n, (f, offset, length, place)) in enumerate(work):
                    k = turn % slots
                    if events[k] is not None:
                        events[k].synchronize()
                    at = (i * slots + k) * size
                    got = os.preadv(self.descriptors[f], [pinned.view[at : at + length]], offset)
                    assert got == length
                    if send:
                        d = n % len(self.devices)
                        stream = streams[d]
                        self.driver.to_device(self.to[d] + place, pinned.address + at, length, stream.cuda_stream)
                        events[k] = stream.record_event()
                for stream in streams:
                    stream.synchronize()

            return reader

        best = min(together(threads, reader_of(iter(list(enumerate(chunks))))) for _ in range(2))
        pinned.close()
        return sum(c[2] for c in chunks) / best

    def mapping(self, threads: int, size: int) -> float:
        cuda = torch.cuda.cudart()
        maps = [mmap.mmap(d, 0, mmap.MAP_SHARED, mmap.PROT_READ) for d in self.descriptors]
        bases = [int(np.frombuffer(m, dtype=np.uint8).ctypes.data) for m in maps]
        chunks = [c for c in self.chunks(size) if c[2] == size]
        work = iter(chunks)

        def reader(i: int) -> None:
            stream = torch.cuda.Stream(self.devices[0])
            last: Any = None
            for f, offset, length, place in work:
                address = bases[f] + offset
                assert int(cuda.cudaHostRegister(address, length, 8)) == 0
                self.driver.to_device(self.to[0] + place, address, length, stream.cuda_stream)
                if last is not None:
                    last[1].synchronize()
                    cuda.cudaHostUnregister(last[0])
                last = (address, stream.record_event())
            if last is not None:
                last[1].synchronize()
                cuda.cudaHostUnregister(last[0])

        return sum(c[2] for c in chunks) / together(threads, reader)

    def peer(self) -> float | None:
        if len(self.devices) < 2:
            return None
        self.driver.connect(self.devices)
        stream = torch.cuda.Stream(self.devices[0])
        rate = 0.0
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(8):
                self.driver.between(self.to[1], self.to[0], 2**30, stream.cuda_stream)
            stream.synchronize()
            rate = max(rate, 8 * 2**30 / (time.perf_counter() - begin))
        return rate

    def disk(self, threads: int, size: int, limit: int = 4 * 2**30) -> float:
        direct = [os.open(f, os.O_RDONLY | os.O_DIRECT) for f in self.files]
        chunks = [c for c in self.chunks(size) if c[2] == size][: limit // size]
        work = iter(chunks)

        def reader(i: int) -> None:
            own = mmap.mmap(-1, size)
            for f, offset, _, _ in work:
                os.preadv(direct[f], [own], offset)

        seconds = together(threads, reader)
        for d in direct:
            os.close(d)
        return sum(c[2] for c in chunks) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=16)
    parser.add_argument("--quick", action="store_true", help="the ring's best settings, link and peer alone")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    m = Machine(args.folder, int(args.gb * 1e9))
    found: dict[str, Any] = {
        "gpus": [torch.cuda.get_device_name(d) for d in m.devices],
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "link": m.link(),
    }
    print(f"{len(m.devices)} × {found['gpus'][0]}, {found['cores']} cores; GB/s", flush=True)
    print(f"{'link':28s} {found['link'] / 1e9:8.1f}", flush=True)
    ring = [r for r in RING if r[0] <= 2 * (os.cpu_count() or 1)]
    for threads, mib in ring[1:3] if args.quick else ring:
        for what, send in (("read", False), ("ring", True)):
            rate = m.ring(threads, mib * MIB, send=send)
            found[f"{what} {threads} × {mib} MiB"] = rate
            print(f"{what:5s} {threads:3d} threads × {mib:2d} MiB     {rate / 1e9:8.1f}", flush=True)
    for setting, (alone, sent) in native(m.files, len(m.devices), args.gb).items():
        found[f"native {setting}"] = {"read": 1e9 * alone, "ring": 1e9 * sent}
        print(f"native {setting:12s} read {alone:6.1f}, ring {sent:6.1f}", flush=True)
    if (rate := m.peer()) is not None:
        found["peer"] = rate
        print(f"{'peer':28s} {rate / 1e9:8.1f}", flush=True)
    if not args.quick:
        for threads, mib in ((1, 256), (4, 64), (8, 32)):
            rate = found[f"mapping {threads} × {mib} MiB"] = m.mapping(threads, mib * MIB)
            print(f"mapping {threads} threads × {mib:3d} MiB   {rate / 1e9:8.1f}", flush=True)
        for threads, mib in ((4, 8), (16, 4), (32, 2)):
            rate = found[f"disk {threads} × {mib} MiB"] = m.disk(threads, mib * MIB)
            print(f"disk {threads:3d} threads × {mib:2d} MiB     {rate / 1e9:8.2f}", flush=True)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
