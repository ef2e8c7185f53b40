"""`loadmaster fit` of full-size checkpoints, whole process, against its limit.

    python benchmarks/bench_fit.py [--runs 3] [--results DIR]

Each run is a fresh ``loadmaster fit … --json`` on shards with true headers and sparse bodies: headers, all legal layouts, the
smallest machine, and the proof of the best layout. Beside it, in the same run, ``plan`` of that checkpoint. The first run is
not counted. Seconds are wall time and the processor's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOADMASTER = [sys.executable, "-m", "loadmaster"]
LIMIT_S = 3.0
CASES = {
    "glm-5.1-fp8, 64 × H100": ("glm-5.1-fp8", ["fit", "--devices", "H100x64", "--engine", "vllm"]),
    "glm-5.1-fp8, 8 × H200": ("glm-5.1-fp8", ["fit", "--devices", "H200x8"]),
    "deepseek-v3, 16 × H100": ("deepseek-v3", ["fit", "--devices", "H100x16", "--engine", "vllm"]),
    "qwen3-moe, 2 × H100": ("qwen3-moe", ["fit", "--devices", "H100x2"]),
    "glm-5.1-fp8, plan -pp 8": ("glm-5.1-fp8", ["plan", "-pp", "8"]),
}


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and processor seconds of one process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in {preset for preset, _ in CASES.values()}:
            command = [*LOADMASTER, "synth", preset, str(Path(folder) / preset), "--full-size"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for run in range(args.runs + 1):
            for name, (preset, (command, *options)) in CASES.items():
                figures = measure([*LOADMASTER, command, str(Path(folder) / preset), *options, "--json"])
                if run:
                    taken.setdefault(name, []).append(figures)
    print(f"{'what':30s} {'s median':>9s} {'of CPU':>7s} {'limit':>6s}")
    for name, figures in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:30s} {wall:9.2f} {cpu:7.2f} {LIMIT_S if 'plan' not in name else '':>6}")
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "fit.json").write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
