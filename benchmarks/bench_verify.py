"""Verifying a payload, page cache warm: against a bare preadv loop over the same files, and against hashlib alone.

    python benchmarks/bench_verify.py [--gb 3] [--runs 5] [--threads N] [--results DIR]

The floor without hashing is reading every byte with preadv, in as many threads, into one reused buffer a thread. The floor
with it is SHA-256 on top of that and nothing else, one file a thread. Every measurement is a process of its own, in which
the way runs twice, and the second pass is the figure. The order alternates from run to run, a way beside its floor, and
ratios are medians of those of each run; GB a CPU second hardly depend on what else the machine does. Planning and the
headers are part of ours. The checkpoint is a GLM-5.1-FP8 of three layers and fewer experts in eight shards, each tensor of
its true size.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 4 * 2**20
NUM_SHARDS = 8


def make(path: Path, gb: float) -> None:
    """Write the checkpoint, and a manifest of its shards."""
    import numpy as np

    from loadmaster.synth import PRESETS, write_full_size

    write_full_size(
        dataclasses.replace(PRESETS["glm-5.1-fp8"], num_shards=NUM_SHARDS),
        path,
        overrides={
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "n_routed_experts": max(int((gb - 1.5) * 1e9 / 2 / 37.8e6), 8),
            "vocab_size": 32768,
            "num_nextn_predict_layers": 0,
        },
    )
    from loadmaster.checkpoint import open_checkpoint

    table = open_checkpoint(path).table
    noise = np.random.default_rng(0).integers(1, 100, 2**26, dtype=np.uint8).tobytes()
    scales = np.full(2**16, 0.01, dtype="<f4").tobytes()
    files = [f.name for f in open_checkpoint(path).files]
    for number, name in enumerate(files):
        with (path / name).open("r+b") as file:
            for i in np.flatnonzero(table.file == number).tolist():
                file.seek(int(table.start[i]))
                left, pattern = int(table.nbytes[i]), scales if table.names[i].endswith("_scale_inv") else noise
                while left:
                    left -= file.write(pattern[:left])
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    (path / "SHA256SUMS").write_text("".join(lines))


def each_file(path: Path, threads: int, work: Callable[[int, int, memoryview], None]) -> dict[str, float]:
    files = sorted(path.glob("*.safetensors"))
    begin = time.perf_counter()
    queue = iter(files)

    def reader() -> None:
        own = memoryview(bytearray(CHUNK))
        for file in queue:
            descriptor = os.open(file, os.O_RDONLY)
            work(descriptor, file.stat().st_size, own)
            os.close(descriptor)

    with ThreadPoolExecutor(threads) as pool:
        for f in [pool.submit(reader) for _ in range(threads)]:
            f.result()
    return {"seconds": time.perf_counter() - begin, "bytes": sum(f.stat().st_size for f in files)}


def read(descriptor: int, size: int, own: memoryview) -> None:
    for offset in range(0, size, CHUNK):
        os.preadv(descriptor, [own[: min(CHUNK, size - offset)]], offset)


def read_and_hash(descriptor: int, size: int, own: memoryview) -> None:
    sha256 = hashlib.sha256()
    for offset in range(0, size, CHUNK):
        part = own[: min(CHUNK, size - offset)]
        os.preadv(descriptor, [part], offset)
        sha256.update(part)
    sha256.hexdigest()


def ours(path: Path, threads: int, hashing: bool) -> dict[str, float]:
    from loadmaster import payload
    from loadmaster.checkpoint import open_checkpoint

    begin = time.perf_counter()
    survey = payload.survey_payload(open_checkpoint(path), hashing=hashing)
    surveyed = time.perf_counter()
    result = payload.verify_payload(survey, num_threads=threads)
    assert result.sound and result.num_recorded == NUM_SHARDS * hashing, result.findings
    done = time.perf_counter()
    return {"seconds": done - begin, "survey_seconds": surveyed - begin, "bytes": result.read_bytes}


WAYS = {
    "preadv": lambda p, t: each_file(p, t, read),
    "loadmaster, no hash": lambda p, t: ours(p, t, False),
    "preadv + SHA-256": lambda p, t: each_file(p, t, read_and_hash),
    "loadmaster": lambda p, t: ours(p, t, True),
}
FLOORS = {"loadmaster, no hash": "preadv", "loadmaster": "preadv + SHA-256"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--one", choices=list(WAYS))
    args = parser.parse_args()
    if args.one:
        first = WAYS[args.one](args.path, args.threads)
        before = time.process_time()
        second = WAYS[args.one](args.path, args.threads)
        cpu_seconds = time.process_time() - before
        print(json.dumps({**second, "cpu_seconds": cpu_seconds, "first_seconds": first["seconds"]}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or Path(folder) / "checkpoint"
        if not path.exists():
            make(path, args.gb)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for run in range(args.runs + 1):  # the first warms the page cache
            for way in list(WAYS) if run % 2 else list(reversed(WAYS)):
                command = [sys.executable, __file__, "--one", way, "--path", str(path), "--threads", str(args.threads)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                if run:
                    runs[way].append(json.loads(out))
    rates = {way: [r["bytes"] / r["seconds"] / 1e9 for r in made] for way, made in runs.items()}
    print(f"{'way':22s} {'GB/s median':>12s} {'min':>7s} {'max':>7s} {'of its floor':>13s} {'GB a CPU second':>16s}")
    ratios = {}
    for way, r in rates.items():
        if way in FLOORS:
            ratios[way] = statistics.median(ours / floor for ours, floor in zip(r, rates[FLOORS[way]], strict=True))
        cpu = statistics.median(x["bytes"] / x["cpu_seconds"] / 1e9 for x in runs[way])
        row = (
            f"{way:22s} {statistics.median(r):12.2f} {min(r):7.2f} {max(r):7.2f} {ratios.get(way, 1):13.2f} {cpu:16.2f}"
        )
        print(row)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        result = {"threads": args.threads, "rates_gb_s": rates, "of_floor": ratios, "runs": runs}
        (args.results / "verify.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
