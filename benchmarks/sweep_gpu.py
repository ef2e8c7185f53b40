"""Loading onto GPUs at several settings, in one process: readers, size and number of slots, reads that wait.

    python benchmarks/sweep_gpu.py FOLDER [--layout "-pp 2"] [--passes 3] [--results FILE]

FOLDER is a checkpoint that load_gpu.py wrote. The rate is that of the phase ``load``: planning and page-locking are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from load_gpu import plan_of

from loadmaster.loader import load_ranks
from loadmaster.loader.cuda import conductor
from loadmaster.loader.cuda.ring import Ring, device_readers
from loadmaster.plan import prove

SLOTS = ((4096, 2.0), (4096, 1.5), (4096, 3.0), (2048, 2.0), (2048, 4.0))
"""KiB of a slot, and slots for each reader."""

QUEUED = (0, 2, 6)
"""Reads that are begun beyond the number of readers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", default="")
    parser.add_argument("--readers", type=int, default=device_readers(), help="once a process: the C library's threads")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    plan = prove(plan_of(args.folder, args.layout)).require_proven()
    devices = {rank: f"cuda:{rank}" for rank in range(plan.num_ranks)}
    for device in devices.values():
        torch.zeros(1, device=device)
    rates: dict[str, list[float]] = {}
    for _ in range(args.passes):
        for (kib, each), queued in itertools.product(SLOTS, QUEUED):
            conductor.QUEUED = queued
            num_slots = int(each * args.readers)
            with Ring(num_slots, kib * 1024) as ring:
                loaded = load_ranks(plan, devices, ring=ring, num_readers=args.readers)
            reports = [x.report for x in loaded.values()]
            name = f"{args.readers} readers, {num_slots} slots of {kib} KiB, {queued} reads wait"
            rate = sum(r.needed_bytes for r in reports) / reports[0].phases["load"] / 1e9
            rates.setdefault(name, []).append(rate)
            del loaded
    for name, found in rates.items():
        print(f"{name:48s} GB/s {' '.join(f'{r:.1f}' for r in found)}")
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps({"layout": args.layout, "rates_gb_s": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
