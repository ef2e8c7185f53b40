"""Load time on a GPU: what `plan --storage --link` predicts of a rank, against what loading it takes.

    python benchmarks/load_gpu.py FOLDER --make
    python -m benchmarks.load_time_gpu FOLDER [--cold] [--runs 3] [--results FILE]

The rates are measured first, without the loader: floor.py's link, and its best read, of the page cache or with ``--cold`` of
the disk by direct I/O. Each rank of each layout is then loaded alone onto the first GPU, as on a host of its own, in a process
of its own. What counts is the time from a proven plan to the last byte on the device; CUDA's context exists before. The
median of the runs is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.floor import MIB, Machine, native
from benchmarks.load_gpu import plan_of

LAYOUTS = ("-pp 1", "-pp 2", "-tp 2")
READS = ((8, 4), (16, 4), (16, 8))
"""Threads, and MiB of one read."""
DISK_READS = ((4, 8), (16, 4), (32, 2))


def measured_rates(folder: Path, *, cold: bool) -> tuple[float, float]:
    """Return bytes a second: of storage, and of the link."""
    machine = Machine(folder, int(16e9))
    link = machine.link()
    if cold:
        return max(machine.disk(threads, mib * MIB) for threads, mib in DISK_READS), link
    read = [machine.ring(threads, mib * MIB, send=False) for threads, mib in READS]
    read += [1e9 * alone for alone, _ in native(machine.files, 1, 16).values()]
    return max(read), link


def load_once(folder: Path, layout: str, rank: int) -> dict[str, Any]:
    """Load one rank in this process; return the seconds, and those of the loader's phases."""
    import torch

    from loadmaster.loader import load_ranks
    from loadmaster.plan import prove

    torch.zeros(1, device="cuda:0")
    plan = prove(plan_of(folder, layout)).require_proven()
    begin = time.perf_counter()
    loaded = load_ranks(plan, {rank: "cuda:0"})
    torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - begin, "phases": dict(loaded[rank].report.phases)}


def measure(folder: Path, layout: str, rates: tuple[float, float], *, cold: bool, runs: int) -> list[dict[str, Any]]:
    """Return for each rank of a layout what was predicted, and what was measured."""
    from loadmaster.plan import prove
    from loadmaster.sizing.load_time import Rates, load_time

    plan = plan_of(folder, layout)
    predicted = load_time(plan.layout, prove(plan).ranks, Rates(*rates, hosts=plan.num_ranks))
    lines = []
    for rank in predicted.ranks:
        taken = []
        for _ in range(runs):
            if cold:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            command = [
                sys.executable,
                "-m",
                "benchmarks.load_time_gpu",
                str(folder),
                "--one",
                layout,
                "--rank",
                str(rank.rank),
            ]
            made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            taken.append(json.loads(made.stdout.splitlines()[-1]))
        lines.append(
            {
                "rank": rank.rank,
                "bytes_to_device": rank.bytes_to_device,
                "read_bytes": predicted.host_bytes[rank.host],
                "bottleneck": rank.bottleneck,
                "predicted": rank.seconds,
                "measured": statistics.median(t["seconds"] for t in taken),
                "runs": taken,
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each load")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(load_once(args.folder, args.one, args.rank)))
        return
    import torch

    rates = measured_rates(args.folder, cold=args.cold)
    kind = "disk" if args.cold else "page cache"
    print(f"{kind} {rates[0] / 1e9:.1f} GB/s, link {rates[1] / 1e9:.1f} GB/s", flush=True)
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "storage": kind,
        "storage_bytes_per_s": rates[0],
        "link_bytes_per_s": rates[1],
        "layouts": {},
    }
    torch.cuda.empty_cache()
    print("| layout | rank | GB to device | bottleneck | predicted s | measured s | off |")
    for layout in LAYOUTS:
        found["layouts"][layout] = measure(args.folder, layout, rates, cold=args.cold, runs=args.runs)
        for r in found["layouts"][layout]:
            off = f"{r['predicted'] / r['measured'] - 1:+.0%}"
            figures = f"{r['predicted']:.2f} | {r['measured']:.2f} | {off}"
            print(
                f"| {layout} | {r['rank']} | {r['bytes_to_device'] / 1e9:.1f} | {r['bottleneck']} | {figures} |",
                flush=True,
            )
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
