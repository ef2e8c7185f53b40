"""Loading onto GPUs at several settings, in one process: readers, size and number of slots, streams.

    python benchmarks/sweep_gpu.py FOLDER [--layout "-pp 2"] [--passes 3] [--results FILE]

FOLDER is a checkpoint that load_gpu.py wrote. The rate is that of the phase ``load``: planning and page-locking are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from load_gpu import plan_of

from loadmaster.loader import load_ranks, transfer
from loadmaster.loader.ring import Ring

SETTINGS = (
    (14, 4096, 28, 4),
    (14, 4096, 28, 1),
    (14, 2048, 40, 4),
    (10, 4096, 24, 4),
    (20, 4096, 40, 4),
    (30, 4096, 60, 4),
    (14, 8192, 28, 4),
)
"""Readers, KiB of a slot, slots, streams."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", default="")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    plan = plan_of(args.folder, args.layout)
    devices = {rank: f"cuda:{rank}" for rank in range(plan.num_ranks)}
    for device in devices.values():
        torch.zeros(1, device=device)
    rates: dict[str, list[float]] = {}
    for _ in range(args.passes):
        for readers, kib, slots, streams in SETTINGS:
            transfer.STREAMS = streams
            with Ring(slots, kib * 1024) as ring:
                loaded = load_ranks(plan, devices, ring=ring, num_readers=readers)
            reports = [x.report for x in loaded.values()]
            name = f"{readers} readers, {slots} slots of {kib} KiB, {streams} streams"
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
