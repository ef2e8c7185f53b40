"""Loading into host memory, page cache warm: against a bare preadv loop, and against safetensors.torch.load_file + copy.

    python benchmarks/bench_load_cpu.py [--gb 2.5] [--runs 5] [--results DIR]

The floor reads the same byte ranges of the same files with as many threads in 8 MiB chunks: into a buffer that each thread
reuses, which stays in the processor's cache and so never pays for memory; and into fresh memory of the checkpoint's size,
as a loader has to, in pages of 4 KiB and in huge ones. Every measurement is a process of its own, in which the way runs
twice: memory that a virtual machine touches for the first time costs its host more than the copy, and is another's matter,
so the second pass is the figure and the first is printed beside it. The order alternates from run to run. Memory is what
is anonymous after loading, above a process that has only imported torch.
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
from typing import Any

CHUNK = 8 * 2**20
_ANONYMOUS: dict[str, int] = {}


def make(path: Path, gb: float) -> None:
    """Write a GLM-5.1-FP8 of one dense and several sparse layers: FP8 experts with scales, as most bytes of the real one."""
    sizes = {
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "moe_intermediate_size": 1024,
        "n_routed_experts": max(int(gb * 1e9 / 3 / 6.3e6), 8),
        "vocab_size": 32768,
        "num_nextn_predict_layers": 0,
    }
    write_noise(path, "glm-5.1-fp8", sizes)


def write_noise(path: Path, name: str, overrides: dict[str, Any], num_shards: int = 2) -> None:
    """Write a preset's checkpoint with other sizes and random bytes, none of which is zero."""
    import numpy as np
    import orjson

    from loadmaster.synth import PRESETS
    from loadmaster.synth.inventory import inventory
    from loadmaster.synth.write import write_shard

    preset = PRESETS[name]
    config = preset.config_of(tiny=False) | overrides
    entries = inventory(preset, config)
    random = np.random.default_rng(0)
    noise = random.integers(1, 100, 2**26, dtype=np.uint8).tobytes()
    path.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        part = entries[i * len(entries) // num_shards : (i + 1) * len(entries) // num_shards]
        bodies = (
            noise[: e.signature.num_bytes]
            if e.signature.num_bytes <= len(noise)
            else (noise * (e.signature.num_bytes // len(noise) + 1))[: e.signature.num_bytes]
            for e in part
        )
        shard = path / f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        weight_map |= {e.name: shard.name for e in part}
        write_shard(
            shard,
            [(e.name, e.signature.dtype, e.signature.shape) for e in part],
            bodies,
        )
    total = sum(e.signature.num_bytes for e in entries)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    (path / "config.json").write_bytes(orjson.dumps(config))


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


def floor(path: Path, threads: int, fresh: bool, huge: bool = False) -> dict[str, float]:
    """Read every byte of every shard with preadv."""
    import mmap
    from concurrent.futures import ThreadPoolExecutor

    files = sorted(path.glob("*.safetensors"))
    fds = [os.open(f, os.O_RDONLY) for f in files]
    sizes = [f.stat().st_size for f in files]
    begin = time.perf_counter()
    memory = [mmap.mmap(-1, s, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if fresh else None for s in sizes]
    if huge:
        for m in memory:
            m.madvise(mmap.MADV_HUGEPAGE)
    chunks = [(i, o) for i, s in enumerate(sizes) for o in range(0, s, CHUNK)]
    work = iter(chunks)

    def reader() -> None:
        own = memoryview(bytearray(CHUNK))
        for i, offset in work:
            n = min(CHUNK, sizes[i] - offset)
            into = memoryview(memory[i])[offset : offset + n] if fresh else own[:n]
            got = os.preadv(fds[i], [into], offset)
            assert got == n

    with ThreadPoolExecutor(threads) as pool:
        for f in [pool.submit(reader) for _ in range(threads)]:
            f.result()
    return {"seconds": time.perf_counter() - begin, "bytes": sum(sizes)}


def ours(path: Path, threads: int) -> dict[str, float]:
    import torch  # noqa: F401

    before = _ANONYMOUS.setdefault("torch alone", anonymous_bytes())
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.loader import load_rank
    from loadmaster.plan import build_plan, prove

    begin = time.perf_counter()
    plan = prove(build_plan(open_checkpoint(path))).require_proven()
    planned = time.perf_counter()
    loaded = load_rank(plan, 0, num_readers=threads)
    done = time.perf_counter()
    return {
        "seconds": done - planned,
        "plan_seconds": planned - begin,
        "bytes": loaded.report.needed_bytes,
        "anonymous_bytes": anonymous_bytes() - before,
        "resident_bytes": loaded.report.resident_bytes,
        "staging_bytes": loaded.report.staging_bytes,
    }


def safetensors_copy(path: Path, threads: int) -> dict[str, float]:
    """load_file, then copy into preallocated parameters (stacked experts and all), as engines do."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    begin = time.perf_counter()
    total = 0
    params = []
    for file in sorted(path.glob("*.safetensors")):
        for tensor in load_file(file).values():
            param = torch.empty_like(tensor)
            param.copy_(tensor)
            params.append(param)
            total += tensor.numel() * tensor.element_size()
    return {"seconds": time.perf_counter() - begin, "bytes": total}


WAYS = {
    "preadv, reused buffer": lambda p, t: floor(p, t, False),
    "preadv, fresh memory": lambda p, t: floor(p, t, True),
    "preadv, fresh huge pages": lambda p, t: floor(p, t, True, huge=True),
    "loadmaster": ours,
    "safetensors load_file + copy": safetensors_copy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--one", choices=list(WAYS))
    args = parser.parse_args()
    if args.one:
        first = WAYS[args.one](args.path, args.threads)
        second = WAYS[args.one](args.path, args.threads)
        print(json.dumps({**second, "first_seconds": first["seconds"]}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or Path(folder) / "checkpoint"
        if not args.path:
            make(path, args.gb)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for run in range(args.runs + 1):  # the first warms the page cache
            for way in list(WAYS) if run % 2 else list(reversed(WAYS)):
                command = [sys.executable, __file__, "--one", way, "--path", str(path), "--threads", str(args.threads)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                if run:
                    runs[way].append(json.loads(out))
    rates = {way: [r["bytes"] / r["seconds"] / 1e9 for r in made] for way, made in runs.items()}
    result = {"threads": args.threads, "rates_gb_s": rates, "runs": runs}
    base = statistics.median(rates["loadmaster"])
    print(f"{'way':32s} {'GB/s median':>12s} {'min':>7s} {'max':>7s} {'first pass':>11s} {'loadmaster / it':>16s}")
    for way, r in rates.items():
        median = statistics.median(r)
        first = statistics.median(x["bytes"] / x["first_seconds"] / 1e9 for x in runs[way])
        print(f"{way:32s} {median:12.2f} {min(r):7.2f} {max(r):7.2f} {first:11.2f} {base / median:16.2f}")
    last = runs["loadmaster"][-1]
    extra = last["anonymous_bytes"] - last["resident_bytes"] - last["staging_bytes"]
    print(f"anonymous memory above torch alone − parameters − staging: {extra / 2**20:.0f} MiB (limit 100)")
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "load_cpu.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
