"""From the start of a process to parameters on a GPU, by phase: the command ``loadmaster load``, and peers doing the same work.

    python benchmarks/start_gpu.py FOLDER [--runs 3] [--cold] [--only NAME …] [--results FILE]

FOLDER is a checkpoint that load_gpu.py wrote; one GPU. ``start`` is all before memory is allocated on the device: the
interpreter, imports, CUDA's context, and for loadmaster headers, plan and proof, beside which it page-locks its memory.
``rest`` is what lies between and after, until the first line comes out. ``--cold``: the checkpoint's files, and nothing else,
are dropped from the page cache before each run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

PEERS = ("instanttensor mmap", "safetensors prefetch 16", "safetensors prefetch 8", "safetensors safe_open")
PHASES = ("start", "allocate", "load", "rest", "ready")


def drop(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def first_line(command: list[str]) -> tuple[float, Any]:
    """Return the seconds until a command's first line came out, and the JSON in it."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    rest = process.stdout.read()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed: {line}{rest}")
    return seconds, json.loads(line + rest)


def command(folder: Path) -> dict[str, float]:
    """The command itself."""
    ready, found = first_line([sys.executable, "-m", "loadmaster", "load", str(folder), "--device", "cuda", "--json"])
    phases = found["ranks"][0]["phases"]
    load = phases["prepare"] + phases["load"]
    known = phases["allocate"] + load + phases["pin"]
    return {"start": ready - known, "allocate": phases["allocate"], "load": load, "rest": phases["pin"], "ready": ready}


def peer(folder: Path, way: str) -> dict[str, float]:
    script = str(Path(__file__).parent / "load_gpu.py")
    begin = time.time()
    _, found = first_line([sys.executable, script, str(folder), "--one", way, "--passes", "1"])
    (only,) = found["passes"]
    ready = found["started"] - begin + only["ready"]
    start = found["started"] - begin + found["context"]
    rest = ready - start - only["allocated"] - only["seconds"]
    return {"start": start, "allocate": only["allocated"], "load": only["seconds"], "rest": rest, "ready": ready}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    ways = [w for w in ("loadmaster", *PEERS) if not args.only or any(o in w for o in args.only)]
    taken: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(args.runs):
        for way in ways:
            if args.cold:
                drop(args.folder)
            taken[way].append(command(args.folder) if way == "loadmaster" else peer(args.folder, way))
    print(f"{'medians, s, ' + ('cold' if args.cold else 'warm'):28s}", *(f"{p:>9s}" for p in PHASES), "  ready, each")
    for way, runs in taken.items():
        medians = [f"{statistics.median(r[p] for r in runs):9.2f}" for p in PHASES]
        print(f"{way:28s}", *medians, "  ", " ".join(f"{r['ready']:.2f}" for r in runs), flush=True)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps({"cold": args.cold, "ways": taken}, indent=1) + "\n")


if __name__ == "__main__":
    main()
