"""Planning and proving full-size checkpoints, whole process, against their limits; and how it grows with ranks.

    python benchmarks/bench_plan.py [--runs 5] [--results DIR]

Each run is a fresh ``loadmaster plan … --json`` on shards with true headers and sparse bodies: interpreter start, headers
(page cache warm), plan, proof of all ranks, JSON. The floor beside it, taken in the same run, is a process that parses the
same headers with orjson and does nothing else. The first run is not counted: it compiles the package, as pip does when it
installs one. Seconds are wall time, memory the peak resident set. The order of commands is the same in each round, so that
what a round suffers, all of its commands suffer.
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

FORMS = ("glm-5.1-fp8", "deepseek-v3", "kimi-k2", "kimi-k2-int4", "deepseek-v3-modelopt-fp4", "kimi-k3")
LAYOUTS = {
    "-pp 8": 0.8,
    "-pp 8 -tp 8": 1.2,
    "-pp 8 -tp 8 --enable-expert-parallel": 1.2,
}
LIMIT_MIB = 200
LARGE = {"kimi-k3": 1.5}
"""Seconds for a checkpoint of half a million tensors, in each layout; its memory may be twice `LIMIT_MIB`."""
CURVE = {
    1: "-pp 1",
    2: "-pp 2",
    4: "-pp 4",
    8: "-pp 8",
    16: "-pp 8 -tp 2",
    32: "-pp 8 -tp 4",
    64: "-pp 8 -tp 8",
    128: "-pp 8 -tp 8 -dp 2",
    256: "-pp 8 -tp 8 -dp 4",
    512: "-pp 8 -tp 8 -dp 8",
}
"""Ranks -> layout, of GLM-5.1; every expert is sliced over all tensor × data ranks of its stage."""

FLOOR = """
import sys, orjson, pathlib, gc
gc.disable()
for p in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with p.open("rb") as f:
        orjson.loads(f.read(int.from_bytes(f.read(8), "little")))
"""

LOADMASTER = [str(Path(sys.executable).with_name("loadmaster"))]
"""The command as it is installed: ``python -m`` takes 0.03 s more."""


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall seconds and peak resident MiB of one process."""
    begin = time.perf_counter()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def commands(folder: Path) -> dict[str, tuple[list[str], float | None]]:
    """Return what is measured: name -> command and its limit in seconds."""
    made: dict[str, tuple[list[str], float | None]] = {"--help": ([*LOADMASTER, "--help"], 0.15)}
    for form in FORMS:
        model = str(folder / form)
        for layout, limit in LAYOUTS.items():
            arguments = [*LOADMASTER, "plan", model, *layout.split(), "--json"]
            made[f"{form} {layout}"] = (arguments, LARGE.get(form, limit))
        made[f"{form}, floor: orjson over the headers"] = ([sys.executable, "-c", FLOOR, model], None)
    for ranks, layout in CURVE.items():
        arguments = [*LOADMASTER, "plan", str(folder / FORMS[0]), *layout.split(), "--json"]
        made[f"curve: {ranks} ranks, {layout}"] = (arguments, None)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            arguments = [*LOADMASTER, "synth", form, str(Path(folder) / form), "--full-size"]
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        every = commands(Path(folder))
        for run in range(args.runs + 1):
            for name, (command, _) in every.items():
                figures = measure(command)
                if run:
                    taken.setdefault(name, []).append(figures)
    print(f"{'what':60s} {'s median':>9s} {'min':>6s} {'max':>6s} {'limit':>6s} {'MiB':>5s} (limit {LIMIT_MIB})")
    for name, figures in taken.items():
        seconds, limit = [s for s, _ in figures], every[name][1]
        print(
            f"{name:60s} {statistics.median(seconds):9.3f} {min(seconds):6.3f} {max(seconds):6.3f} {limit or '':>6} "
            f"{max(m for _, m in figures):5.0f}"
        )
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "plan.json").write_text(json.dumps(taken, indent=2) + "\n")


if __name__ == "__main__":
    main()
