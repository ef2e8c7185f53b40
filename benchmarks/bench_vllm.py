"""Loading inside vLLM, rank by rank, against vLLM's own format: bytes read from disk, and seconds.

    python benchmarks/bench_vllm.py [--gb 2.5] [--rounds 6] [--results DIR]      (in the environment of `make test-vllm`)

A Qwen3-MoE in BF16 is loaded by ranks of `-pp 4`, `-tp 2` and `-tp 2 --enable-expert-parallel`, each alone, on the CPU, as
the audit does it: vLLM builds the model of that rank, and its loader's ``load_weights`` is what is measured, headers and proof
included. ``loadmaster`` writes this family directly; streamed through vLLM's own loader it is a way of its own. What building
the model takes is told beside it, for with the proof memory is touched then, and without it while loading.

Cold: the checkpoint's pages are dropped before each load, and the kernel's counter for this process says what it read from
disk, with the device's readahead as large as it was found and with 128 KiB (where this user may set it). Warm: the ways
take turns within a process, and the first round does not count. The floor is a bare preadv loop over the same bytes, with
as many threads, into fresh memory in huge pages and in small ones. It writes each byte once; loaders that read a tensor and
copy it into its parameter write it twice. torch computes with one thread, as in a rank that has one core to itself: its
threads spin, and where others want the cores that is all that would be measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_load_cpu import write_noise

SIZES = {
    "num_hidden_layers": 8,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "moe_intermediate_size": 768,
    "vocab_size": 32768,
}
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "-pp 4": [{"pp": (i, 4)} for i in range(4)],
    "-tp 2": [{"tp": (i, 2)} for i in range(2)],
    "-tp 2, whole experts": [{"tp": (i, 2), "ep": True} for i in range(2)],
}
WAYS: dict[str, dict[str, Any]] = {
    "auto": {"load_format": "auto"},
    "loadmaster": {},
    "loadmaster, not verified": {"model_loader_extra_config": {"verify": False}},
    "loadmaster, streamed": {"model_loader_extra_config": {"direct": False}},
}
FLOORS = ("preadv, fresh huge pages", "preadv, fresh memory")
CHUNK = 16 * 2**20
READAHEAD_KIB = 128


def moe_sizes(gb: float) -> dict[str, Any]:
    """Sizes of a Qwen3-MoE of about ``gb`` GB in BF16."""
    expert_bytes = 3 * SIZES["hidden_size"] * SIZES["moe_intermediate_size"] * 2
    return {**SIZES, "num_experts": max(int(gb * 1e9 / SIZES["num_hidden_layers"] / expert_bytes) // 8 * 8, 8)}


def read_bytes() -> int:
    """Bytes that this process has had read from disk."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("no read_bytes")


def drop(path: Path) -> None:
    """Take the checkpoint's files out of the page cache."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextmanager
def readahead(path: Path, kib: int | None) -> Iterator[int | None]:
    """Set the readahead of the disk that holds ``path``; yields what it is then, None where that is not known."""
    device = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    found = [p for p in (block / "queue/read_ahead_kb", block.parent / "queue/read_ahead_kb") if p.exists()]
    if not found:
        yield None
        return
    setting, before = found[0], found[0].read_text().strip()
    try:
        if kib is not None:
            setting.write_text(str(kib))
        yield int(setting.read_text())
    except OSError:
        yield int(before)
    finally:
        if kib is not None and os.access(setting, os.W_OK):
            setting.write_text(before)


def measure(path: Path, rank: dict[str, Any], way: str) -> tuple[dict[str, float], Any]:
    """Build a rank's model and load it; return what both took, and the loader."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from loadmaster.audit.ranks import Rank, load
    from loadmaster.integrations.vllm import loader as ours
    from loadmaster.integrations.vllm import unwritten

    found: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **more: Any) -> Any:
            before, cpu, begin = read_bytes(), time.process_time(), time.perf_counter()
            made = call(*args, **more)
            found[name], found[f"{name}_cpu"] = time.perf_counter() - begin, time.process_time() - cpu
            found[f"{name}_read_bytes"] = read_bytes() - before
            return made

        return wrapper

    kept = [(c, n, getattr(c, n)) for c, n in _timed_methods(BaseModelLoader, DefaultModelLoader, ours.Loader)]
    pattern = unwritten.patterned
    try:
        unwritten.patterned = nullcontext  # of what builds without a rank's loader; that of the loader stays
        for owner, name, call in kept:
            setattr(owner, name, timed({"create_model": "build", "load_weights": "load"}[name], call))
        loaded = load(path, Rank(**{k: tuple(v) if k != "ep" else v for k, v in rank.items()}), **WAYS[way])
    finally:
        unwritten.patterned = pattern
        for owner, name, call in kept:
            setattr(owner, name, call)
    return found, loaded.loader


def _timed_methods(base: Any, default: Any, ours: Any) -> list[tuple[Any, str]]:
    return [(base, "create_model"), (ours, "create_model"), (default, "load_weights"), (ours, "load_weights")]


def ranges_of(loader: Any) -> list[tuple[Path, int, int]]:
    """File, first byte and length of every run of bytes that the loader streamed."""
    runs: list[tuple[Path, int, int]] = []
    for selection in loader.offered:
        table, files = selection.checkpoint.table, selection.checkpoint.files
        for i in sorted(selection.ids, key=lambda i: (table.file[i], table.start[i])):
            file = selection.checkpoint.path / files[table.file[i]].name
            start, length = int(table.start[i]), int(table.nbytes[i])
            if runs and runs[-1][0] == file and sum(runs[-1][1:]) == start:
                runs[-1] = (file, runs[-1][1], runs[-1][2] + length)
            else:
                runs.append((file, start, length))
    return runs


def floor(runs: list[tuple[Path, int, int]], threads: int, huge: bool) -> float:
    """Seconds to read the runs into fresh memory."""
    begin = time.perf_counter()
    descriptors = {file: os.open(file, os.O_RDONLY) for file in {f for f, _, _ in runs}}
    memory = mmap.mmap(-1, sum(n for _, _, n in runs), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
    view, place, chunks = memoryview(memory), 0, []
    for file, start, length in runs:
        for at in range(0, length, CHUNK):
            size = min(CHUNK, length - at)
            chunks.append((file, start + at, view[place : place + size]))
            place += size
    work = iter(chunks)

    def reader() -> None:
        for file, start, into in work:
            assert os.preadv(descriptors[file], [into], start) == len(into)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(reader) for _ in range(threads)]:
            done.result()
    seconds = time.perf_counter() - begin
    for descriptor in descriptors.values():
        os.close(descriptor)
    return seconds


def one(path: Path, rank: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Measure a rank in this process: cold, then warm, the ways in turns."""
    from loadmaster.loader.readers import default_readers

    cold: dict[str, dict[str, float]] = {}
    for label, kib in (("as found", None), (f"{READAHEAD_KIB} KiB", READAHEAD_KIB)):
        with readahead(path, kib) as found:
            for way in ("auto", "loadmaster", "loadmaster, streamed"):
                drop(path)
                measured, loader = measure(path, rank, way)
                cold[f"{way}, readahead {label}"] = {**measured, "readahead_kib": float(found or 0)}
                gc.collect()
    runs = ranges_of(loader)
    warm: dict[str, list[dict[str, float]]] = {way: [] for way in (*WAYS, *FLOORS)}
    for turn in range(rounds + 1):
        for way in [*warm] if turn % 2 else [*reversed(warm)]:
            if way in WAYS:
                measured, _ = measure(path, rank, way)
            else:
                cpu = time.process_time()
                measured = {"load": floor(runs, default_readers(), way == FLOORS[0])}
                measured["load_cpu"] = time.process_time() - cpu
            gc.collect()
            if turn:
                warm[way].append(measured)
    return {"offered_bytes": sum(n for _, _, n in runs), "cold": cold, "warm": warm}


def needed_bytes(path: Path, layout: str) -> list[int]:
    """Bytes of the checkpoint that each rank's parameters are made of, by the plan of vLLM's parameters."""
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import build_plan

    places = {
        "-pp 4": ParallelLayout(pipeline_parallel_size=4),
        "-tp 2": ParallelLayout(tensor_parallel_size=2),
        "-tp 2, whole experts": ParallelLayout(tensor_parallel_size=2, enable_expert_parallel=True),
    }
    plan = build_plan(open_checkpoint(path), places[layout], dtype="BF16", target="vllm-0.32")
    return [plan.rank(i).needed_bytes for i in range(plan.num_ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--path", type=Path, help="a checkpoint that is there already")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if find_spec("vllm") is None:
        print("vLLM is not installed here: run it in the environment of `make test-vllm`")
        return
    if args.one is not None:
        print(json.dumps(one(args.path, args.one, args.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or Path(folder) / "checkpoint"
        if not path.exists():
            write_noise(path, "qwen3-moe", moe_sizes(args.gb), num_shards=4)
        total = sum(f.stat().st_size for f in path.glob("*.safetensors"))
        results: dict[str, Any] = {"payload_bytes": total, "rounds": args.rounds, "layouts": {}}
        print(f"checkpoint {total / 1e9:.2f} GB, load average {os.getloadavg()[0]:.1f}", flush=True)
        for layout in args.layouts:
            made = []
            for rank, needed in zip(LAYOUTS[layout], needed_bytes(path, layout), strict=True):
                command = [sys.executable, __file__, "--one", json.dumps(rank), "--path", str(path)]
                command += ["--rounds", str(args.rounds)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
                made.append({"needed_bytes": needed, **json.loads(done.splitlines()[-1])})
                tell(layout, len(made) - 1, made[-1])
            results["layouts"][layout] = made
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "vllm.json").write_text(json.dumps(results, indent=1) + "\n")


def tell(layout: str, rank: int, made: dict[str, Any]) -> None:
    offered, needed = made["offered_bytes"], made["needed_bytes"]
    print(
        f"\n{layout}, rank {rank}: {needed / 1e6:.0f} MB needed, {offered / 1e6:.0f} MB offered where it is streamed",
        flush=True,
    )
    for way, found in made["cold"].items():
        read = found["load_read_bytes"]
        print(
            f"  cold {way:46s} {read / 1e6:7.0f} MB read, {read / needed:5.3f} of what is needed, {found['load']:.2f} s"
        )
    ours = statistics.median(m["load"] for m in made["warm"]["loadmaster"])
    for way, runs in made["warm"].items():
        seconds = [m["load"] for m in runs]
        build = f", built in {statistics.median(m['build'] for m in runs):.2f}" if "build" in runs[0] else ""
        median, cpu = statistics.median(seconds), statistics.median(m["load_cpu"] for m in runs)
        print(
            f"  warm {way:26s} {median:6.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), {cpu:.3f} s of CPU; "
            f"it / loadmaster {median / ours:5.2f}{build}",
            flush=True,
        )


if __name__ == "__main__":
    main()
