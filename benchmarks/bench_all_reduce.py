"""Sums over tensor-parallel ranks on one host: the sockets of `loadmaster.distributed.tensor` against gloo, one process a rank.

python benchmarks/bench_all_reduce.py [OUT.json]
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from loadmaster.distributed.mesh import Mesh
from loadmaster.distributed.tensor import HostGroup

HIDDEN = 6144  # of GLM-5.1
TOKENS = (1, 8, 512)
RUNS = {1: 400, 8: 400, 512: 20}


def rank(slot: int, sockets: list[socket.socket | None], folder: str, report: Connection) -> None:
    """Measure both on one rank; the first rank reports seconds by kind and number of tokens."""
    torch.set_num_threads(1)
    size = len(sockets)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=slot, world_size=size)
    group = HostGroup(Mesh(slot, sockets))

    def gloo(x: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(x)
        return x

    measured = {}
    for tokens in TOKENS:
        x = torch.ones(tokens, HIDDEN, dtype=torch.bfloat16)
        for name, reduce in (("sockets", group.all_reduce), ("gloo", gloo)):
            times = []
            for _ in range(RUNS[tokens]):
                work = x.clone()
                torch.distributed.barrier()
                begin = time.perf_counter()
                total = reduce(work)
                times.append(time.perf_counter() - begin)
                assert total[0, 0] == size
            measured[f"{name}/{tokens}"] = statistics.median(times)
    if slot == 0:
        report.send(measured)


def measure(size: int) -> dict[str, float]:
    """Return the median seconds over ``size`` ranks."""
    context = get_context("fork")
    ends: list[list[socket.socket | None]] = [[None] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            ends[i][j], ends[j][i] = socket.socketpair()
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=rank, args=(slot, ends[slot], folder, theirs)) for slot in range(size)]
        for process in ranks:
            process.start()
        measured: dict[str, float] = ours.recv()
        for process in ranks:
            process.join()
    return measured


def main() -> None:
    """Print a table, and write it as JSON where a file is given."""
    results = {str(size): measure(size) for size in (2, 4)}
    print(f"{'ranks':>5} {'tokens':>6} {'KiB':>6} {'sockets µs':>11} {'gloo µs':>8} {'ratio':>6}")
    for size, measured in results.items():
        for tokens in TOKENS:
            ours, peer = measured[f"sockets/{tokens}"], measured[f"gloo/{tokens}"]
            kib = tokens * HIDDEN * 2 // 1024
            print(f"{size:>5} {tokens:>6} {kib:>6} {ours * 1e6:>11.0f} {peer * 1e6:>8.0f} {ours / peer:>6.2f}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"cores": os.cpu_count(), "seconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
