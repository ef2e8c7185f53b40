"""Loading a stage of GLM-5.1-FP8 onto GPUs: loadmaster, its floor, and the peers, in the same run.

    python benchmarks/load_gpu.py FOLDER --make [--layers 3] [--small]       write the checkpoint: full width, random bytes
    python benchmarks/load_gpu.py FOLDER [--layout "-tp 2"] [--runs 2] [--cold] [--only NAME …] [--results FILE]

Every way is a process of its own, which loads twice: into parameters as a model has them (experts stacked and fused, all
else as the plan says), so the peers' tensors are copied to their places as an engine's loader does. ``seconds`` run from
opening the files to the last byte on the device, planning and page-locking included; ``ready`` from the start of the
process. Sums over all parameters are compared between the ways. With ``--cold`` the page cache is emptied before each
process, which then loads once. The peers are used where they are installed: instanttensor, safetensors (prefetch is in
0.9), runai-model-streamer, fastsafetensors.

With a layout of several ranks, loadmaster loads all of them in one process, rank i onto GPU i, and also in one process a
rank; the peers have one process a rank, and instanttensor a process group besides.
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
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

STARTED = time.time()
SHARDS = 16


SMALL = {"hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 256, "vocab_size": 1024}


def make(path: Path, layers: int, *, small: bool) -> None:
    """Write ``layers`` sparse layers of GLM-5.1-FP8 at full width: 9.7 GB each, embedding and head 1.9 GB each.

    ``small``: as many tensors, of 32 KiB: what is left is what each tensor costs.
    """
    from loadmaster.synth import PRESETS

    preset = PRESETS["glm-5.1-fp8"]
    config = preset.config_of(tiny=False) | {
        "num_hidden_layers": layers,
        "first_k_dense_replace": 0,
        "num_nextn_predict_layers": 0,
        **(SMALL if small else {}),
    }
    write_noise(path, preset, config)


def write_noise(path: Path, preset: Any, config: dict[str, Any]) -> None:
    """Write a preset's checkpoint with this config: random bytes, none of which is zero, other ones in each tensor."""
    import numpy as np
    import orjson

    from loadmaster.synth.inventory import inventory

    entries = inventory(preset, config)
    total = sum(e.signature.num_bytes for e in entries)
    parts: list[list[Any]] = [[]]
    size = 0
    for e in entries:
        if size > total / SHARDS:
            parts.append([])
            size = 0
        parts[-1].append((e.name, e.signature.dtype, e.signature.shape, e.signature.num_bytes))
        size += e.signature.num_bytes
    path.mkdir(parents=True, exist_ok=True)
    np.random.default_rng(0).integers(1, 100, 2**27, dtype=np.uint8).tofile(path / "noise")
    names = [path / f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_write, names, parts, [path / "noise"] * len(parts)))
    (path / "noise").unlink()
    weight_map = {entry[0]: name.name for name, part in zip(names, parts, strict=True) for entry in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    (path / "config.json").write_bytes(orjson.dumps(config))


def _write(file: Path, entries: list[tuple[str, str, tuple[int, ...], int]], noise_file: Path) -> None:
    from loadmaster.synth.write import write_shard

    noise = memoryview(noise_file.read_bytes())

    def bodies() -> Iterator[bytes]:
        for i, (_, _, _, size) in enumerate(entries):
            begin = i * 7919 % 2**20
            whole = b"" if size <= len(noise) - begin else bytes(noise) * (size // len(noise) + 1)
            yield bytes(noise[begin : begin + size]) if not whole else whole[:size]

    write_shard(file, [e[:3] for e in entries], bodies())


def plan_of(path: Path, layout: str) -> Any:
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import build_plan

    words = layout.split()
    sizes = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return build_plan(
        open_checkpoint(path),
        ParallelLayout(pipeline_parallel_size=sizes.get("-pp", 1), tensor_parallel_size=sizes.get("-tp", 1)),
    )


# Ways: each loads the given ranks once, and returns bytes and seconds ------------------------------------------------


class Destinations:
    """Where an engine would copy a peer's tensors to: name → targets, and how."""

    def __init__(self, plan: Any, rank: int, device: str) -> None:
        import torch

        from loadmaster.architectures.algebra import whole
        from loadmaster.loader.memory import DeviceArena
        from loadmaster.loader.operations import destination

        derived = plan.rank(rank)
        self.params = DeviceArena(derived.specs, torch.device(device), rank).tensors
        self.uses: dict[str, list[tuple[Any, int, dict[int, Any], Any]]] = defaultdict(list)
        self.num_bytes = derived.needed_bytes
        for batch in derived.groups:
            for place in range(len(batch.params)):
                target = destination(self.params, derived, batch, place, whole(batch.piece.source.shape))
                waiting: dict[int, Any] = {}
                for k in range(len(batch.views)):
                    name = plan.checkpoint.table.names[int(batch.tensors[place, k])]
                    self.uses[name].append((batch, k, waiting, target))

    def take(self, name: str, tensor: Any) -> None:
        from loadmaster.loader.operations import view_of, write

        for batch, k, waiting, target in self.uses[name]:
            view = view_of(batch.views[k], tensor)
            if len(batch.views) == 1:
                write(target, batch.piece.source, iter([view]))
                continue
            waiting[k] = view.clone()
            if len(waiting) == len(batch.views):
                write(target, batch.piece.source, iter([waiting[i] for i in range(len(batch.views))]))
                waiting.clear()


def loadmaster(path: Path, layout: str, ranks: list[int], io: str = "auto") -> dict[str, Any]:
    import torch

    from loadmaster.loader import load_ranks
    from loadmaster.plan import prove

    begin = time.perf_counter()
    plan = prove(plan_of(path, layout)).require_proven()
    planned = time.perf_counter()
    loaded = load_ranks(plan, {r: f"cuda:{r}" for r in ranks}, io=io)  # type: ignore[arg-type]
    for r in ranks:
        torch.cuda.synchronize(r)
    end = time.perf_counter()
    report = loaded[ranks[0]].report
    return {
        "seconds": end - begin,
        "end": time.time(),
        "plan": planned - begin,
        "bytes": sum(x.report.needed_bytes for x in loaded.values()),
        "phases": dict(report.phases),
        "staging": report.staging_bytes,
        "io": report.io,
        "tensors": sum(int(len(b.params) * len(b.views)) for r in ranks for b in plan.rank(r).groups),
        "sums": {str(r): sums(x.tensors) for r, x in loaded.items()},
    }


def _peer(tensors: Callable[[list[str], int, set[str]], Iterator[tuple[str, Any]]]) -> Callable[..., dict[str, Any]]:
    def load(path: Path, layout: str, ranks: list[int]) -> dict[str, Any]:
        import torch

        (rank,) = ranks
        before = time.perf_counter()
        to = Destinations(plan_of(path, layout), rank, f"cuda:{rank}")
        torch.cuda.synchronize(rank)
        allocated = time.perf_counter() - before
        files = sorted(str(f) for f in path.glob("*.safetensors"))
        begin = time.perf_counter()
        for name, tensor in tensors(files, rank, set(to.uses)):
            if name in to.uses:
                to.take(name, tensor)
        torch.cuda.synchronize(rank)
        seconds = time.perf_counter() - begin
        end = time.time()
        return {
            "seconds": seconds,
            "end": end,
            "allocated": allocated,
            "bytes": to.num_bytes,
            "sums": {str(rank): sums(to.params)},
        }

    return load


def _instanttensor(backend: str, group: bool = False) -> Callable[..., Iterator[tuple[str, Any]]]:
    def tensors(files: list[str], device: int, needed: set[str]) -> Iterator[tuple[str, Any]]:
        import instanttensor

        options: dict[str, Any] = {"copy": False}
        if backend:
            options["backend"] = instanttensor.Backend[backend]
        if group:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("nccl")
            options["process_group"] = dist.GroupMember.WORLD
        else:
            options |= {"tensor_filter": sorted(needed), "tensor_name_match_mode": "exact"}
        with instanttensor.safe_open(files, "pt", device, **options) as f:
            yield from f.tensors()

    return tensors


def _prefetch(threads: int) -> Callable[..., Iterator[tuple[str, Any]]]:
    def tensors(files: list[str], device: int, needed: set[str]) -> Iterator[tuple[str, Any]]:
        from safetensors import safe_open

        opened = [safe_open(f, "pt", device=f"cuda:{device}") for f in files]
        ahead = []
        for f in opened:
            plan = dict.fromkeys(n for n in f.keys() if n in needed)  # noqa: SIM118
            if not plan:
                continue
            ahead.append(f.prefetch(plan, threads=threads) if len(ahead) < 2 else (f, plan))
        for i in range(len(ahead)):
            yield from ahead[i]
            ahead[i] = None
            if i + 2 < len(ahead):
                f, plan = ahead[i + 2]
                ahead[i + 2] = f.prefetch(plan, threads=threads)

    return tensors


def _safe_open(files: list[str], device: int, needed: set[str]) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt", device=f"cuda:{device}") as f:
            for name in f.keys():  # noqa: SIM118
                if name in needed:
                    yield name, f.get_tensor(name)


def _runai(files: list[str], device: int, needed: set[str]) -> Iterator[tuple[str, Any]]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files, device="cpu")
        for name, tensor in streamer.get_tensors():
            if name in needed:
                yield name, tensor.to(f"cuda:{device}")


def _fastsafetensors(files: list[str], device: int, needed: set[str]) -> Iterator[tuple[str, Any]]:
    from fastsafetensors import fastsafe_open

    for file in files:
        with fastsafe_open([file], device=f"cuda:{device}", nogds=True) as f:
            for name in f.keys():  # noqa: SIM118
                if name in needed:
                    yield name, f.get_tensor(name)


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "loadmaster": loadmaster,
    "loadmaster, a process a rank": loadmaster,
    "instanttensor mmap": _peer(_instanttensor("MMAP")),
    "instanttensor uring buffered": _peer(_instanttensor("URING_BUFFERED")),
    "instanttensor default": _peer(_instanttensor("")),
    "instanttensor mmap, process group": _peer(_instanttensor("MMAP", group=True)),
    "safetensors prefetch 16": _peer(_prefetch(16)),
    "safetensors prefetch 8": _peer(_prefetch(8)),
    "safetensors safe_open": _peer(_safe_open),
    "runai streamer": _peer(_runai),
    "fastsafetensors": _peer(_fastsafetensors),
}


def sums(tensors: dict[str, Any]) -> dict[str, int]:
    """A sum over the bytes of each parameter, weighted by place, so that exchanged bytes show."""
    import torch

    made = {}
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1).view(torch.uint8)
        total = 0
        for part in flat.split(2**28):
            weights = torch.arange(len(part), device=part.device, dtype=torch.int32).remainder_(251)
            total = (total * 31 + int((part.to(torch.int32) * weights).sum(dtype=torch.int64))) % 2**61
        made[name] = total
    return made


def memory() -> dict[str, int]:
    """Anonymous and locked memory of this process, now and at most, in bytes."""
    made = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("RssAnon", "VmHWM", "VmRSS", "VmPin", "VmLck")):
            made[line.split(":")[0]] = int(line.split()[1]) * 1024
    return made


def child(args: argparse.Namespace) -> None:
    import torch

    ranks = [int(r) for r in args.ranks.split(",")]
    if len(ranks) == 1:
        torch.cuda.set_device(ranks[0])
    for r in ranks:
        torch.zeros(1, device=f"cuda:{r}")
    context = time.time()
    before = memory()
    made = []
    for _ in range(args.passes):
        if args.barrier:  # all ranks begin together
            Path(f"{args.barrier}.{len(made)}.{ranks[0]}").touch()
            while not all(Path(f"{args.barrier}.{len(made)}.{r}").exists() for r in range(args.world)):
                time.sleep(0.0005)
        made.append(WAYS[args.one](args.folder, args.layout, ranks))
        made[-1]["ready"] = made[-1].pop("end") - STARTED
        torch.cuda.empty_cache()
    print(
        json.dumps(
            {"passes": made, "started": STARTED, "context": context - STARTED, "before": before, "after": memory()}
        )
    )


def run_way(way: str, folder: Path, layout: str, ranks: int, passes: int) -> dict[str, Any]:
    """Run one way in its processes; return seconds of the slowest, and bytes of all."""
    together = way == "loadmaster"
    groups = [",".join(map(str, range(ranks)))] if together else [str(r) for r in range(ranks)]
    barrier = str(Path(tempfile.gettempdir()) / f"loadmaster-barrier-{os.getpid()}-{time.monotonic_ns()}")
    processes = []
    for r, group in enumerate(groups):
        command = [sys.executable, __file__, str(folder), "--one", way, "--layout", layout, "--ranks", group]
        command += ["--passes", str(passes), "--world", str(len(groups))]
        if len(groups) > 1:
            command += ["--barrier", barrier]
        environment = os.environ | {
            "RANK": str(r), "WORLD_SIZE": str(len(groups)), "LOCAL_RANK": str(r),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
        }  # fmt: skip
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
    found = []
    for p in processes:
        out, err = p.communicate(timeout=300)
        if p.returncode:
            return {"error": err.decode()[-300:]}
        found.append(json.loads(out.decode().splitlines()[-1]))
    passes_made = []
    for i in range(passes):
        each = [f["passes"][i] for f in found]
        passes_made.append(
            {
                **each[0],
                "seconds": max(e["seconds"] for e in each),
                "ready": max(e["ready"] for e in each),
                "bytes": sum(e["bytes"] for e in each),
                "sums": {r: s for e in each for r, s in e["sums"].items()},
            }
        )
    return {
        "passes": passes_made,
        "context": found[0]["context"],
        "before": found[0]["before"],
        "after": found[0]["after"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="with --make: as many tensors, but of 32 KiB each")
    parser.add_argument("--layout", default="")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--ranks", default="0", help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--barrier", help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.folder, args.layers, small=args.small)
        return
    if args.one:
        child(args)
        return
    ranks = plan_of(args.folder, args.layout).num_ranks
    ways = [w for w in WAYS if not args.only or any(o in w for o in args.only)]
    if ranks == 1:
        ways = [w for w in ways if "process" not in w]
    taken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    expected = None
    passes = 1 if args.cold else 2
    print(
        f"{'way':36s} {'GB/s':>6s} {'of passes':>24s} {'ready s':>8s}   {args.layout} {'cold' if args.cold else 'warm'}",
        flush=True,
    )
    for _ in range(args.runs):
        for way in ways:
            if args.cold:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            found = run_way(way, args.folder, args.layout, ranks, passes)
            if "error" in found:
                print(f"{way:36s} failed: {found['error'].splitlines()[-1][:120]}", flush=True)
                taken[way].append(found)
                continue
            for p in found["passes"]:
                made = p.pop("sums")
                expected = made if expected is None else expected
                p["same"] = made == expected
            rates = [p["bytes"] / p["seconds"] / 1e9 for p in found["passes"]]
            same = "" if all(p["same"] for p in found["passes"]) else "  OTHER BYTES"
            shown = " ".join(f"{r:.1f}" for r in rates)
            print(f"{way:36s} {max(rates):6.1f} {shown:>24s} {found['passes'][0]['ready']:8.2f}{same}", flush=True)
            last = found["passes"][-1]
            if "phases" in last:
                words = " ".join(f"{k} {v:.3f}" for k, v in last["phases"].items())
                rate = last["bytes"] / last["phases"]["load"] / 1e9
                each = 1e6 * (last["phases"]["prepare"] + last["phases"]["load"]) / last["tensors"]
                print(
                    f"    load alone {rate:.1f} GB/s, {each:.1f} µs a tensor; plan {last['plan']:.3f} {words}; {last['io']}",
                    flush=True,
                )
            taken[way].append(found)
    best = {
        w: statistics.median(p["bytes"] / p["seconds"] / 1e9 for f in made for p in f.get("passes", [])[-1:])
        for w, made in taken.items()
        if any("passes" in f for f in made)
    }
    print("median of last passes, GB/s:", json.dumps({w: round(r, 1) for w, r in best.items()}))
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps({"layout": args.layout, "cold": args.cold, "ways": taken}, indent=1) + "\n")


if __name__ == "__main__":
    main()
