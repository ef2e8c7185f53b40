"""Planning and proving full-size GLM-5.1-FP8, whole process, against its limits.

    python benchmarks/bench_plan.py [--runs 7] [--results DIR]

Each run is a fresh ``loadmaster plan … --json`` on 142 shards with true headers and sparse bodies: interpreter start, headers
(page cache warm), plan, proof of all ranks, JSON. The floor beside it, taken in the same run, is a process that parses the
same headers with orjson and does nothing else. Seconds are wall time, memory the peak resident set.
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

LIMITS = {
    "--help": (["--help"], 0.15, None),
    "-pp 8": (["plan", "MODEL", "-pp", "8", "--json"], 1.0, 200),
    "-pp 8 -tp 8": (["plan", "MODEL", "-pp", "8", "-tp", "8", "--json"], 1.5, 200),
    "-pp 8 -tp 8 experts divided": (
        ["plan", "MODEL", "-pp", "8", "-tp", "8", "--enable-expert-parallel", "--json"],
        1.5,
        200,
    ),
}

FLOOR = """
import sys, orjson, pathlib, gc
gc.disable()
for p in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with p.open("rb") as f:
        orjson.loads(f.read(int.from_bytes(f.read(8), "little")))
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident MiB of one process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    loadmaster = [sys.executable, "-m", "loadmaster"]
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "glm-5.1-fp8")
        subprocess.run(
            [*loadmaster, "synth", "glm-5.1-fp8", model, "--full-size"], check=True, stdout=subprocess.DEVNULL
        )
        commands = {
            name: [*loadmaster, *(model if a == "MODEL" else a for a in arguments)]
            for name, (arguments, _, _) in LIMITS.items()
        }
        commands["floor: orjson over the headers"] = [sys.executable, "-c", FLOOR, model]
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for run in range(args.runs + 1):
            for name, command in commands.items():
                figures = measure(command)
                if run:
                    taken[name].append(figures)
    print(f"{'what':32s} {'s median':>9s} {'min':>6s} {'max':>6s} {'limit':>6s} {'MiB':>6s} {'limit':>6s}")
    for name, figures in taken.items():
        seconds = [s for s, _ in figures]
        _, limit_s, limit_mib = LIMITS.get(name, ([], "", ""))
        print(
            f"{name:32s} {statistics.median(seconds):9.3f} {min(seconds):6.3f} {max(seconds):6.3f} {limit_s or '':>6} "
            f"{max(m for _, m in figures):6.0f} {limit_mib or '':>6}"
        )
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "plan.json").write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
