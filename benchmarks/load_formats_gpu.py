"""Loading inside vLLM on a GPU, one load format after another: seconds, memory of the device, and whether all are equal.

    python -m benchmarks.load_formats_gpu FOLDER --make [--preset qwen3]       write the checkpoint: full width, random bytes
    python -m benchmarks.load_formats_gpu FOLDER [--formats NAME …] [-pp 2 | -tp 2] [--rounds 3] [--cold] [--results FILE]

Needs vLLM and a GPU. vLLM is imported once; every load is a process forked from there, which builds the model and loads it
as vLLM's worker does; with ``-pp`` or ``-tp`` a process for each rank, each on its GPU, which begin to load together, and the
last one counts. ``seconds`` are those of the loader's ``load_weights``, which is where the formats differ, until the
device has nothing left to do. ``extra_bytes`` are the most that the device has in use meanwhile beyond what it has before,
as the driver says: parameters exist by then, so this is what the format takes besides. Every parameter's bytes are summed up
before vLLM processes them; all formats must have the same sums. The formats take turns, in one order and in the other. With
``--cold`` the files' pages are dropped before each load. A format whose package is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.start_gpu import drop

EVERY_S = 0.005
"""How often the driver is asked for the memory in use."""


@dataclass(frozen=True)
class Format:
    """One way to load: arguments of vLLM, environment variables, and the package that it needs."""

    engine: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    package: str | None = None


def _loadmaster(**options: Any) -> Format:
    return Format({"load_format": "loadmaster", "model_loader_extra_config": options})


FORMATS = {
    "auto": Format({"load_format": "auto"}),
    "auto, prefetch": Format({"load_format": "auto", "safetensors_load_strategy": "prefetch"}),
    "instanttensor": Format({"load_format": "instanttensor"}, {}, "instanttensor"),
    "instanttensor, buffered": Format(
        {"load_format": "instanttensor"}, {"INSTANTTENSOR_BACKEND": "BUFFERED"}, "instanttensor"
    ),
    "fastsafetensors": Format({"load_format": "fastsafetensors"}, {}, "fastsafetensors"),
    "runai_streamer": Format({"load_format": "runai_streamer"}, {}, "runai_model_streamer"),
    "loadmaster, streamed": _loadmaster(direct=False),
    "loadmaster, not verified": _loadmaster(verify=False),
    "loadmaster": _loadmaster(),
}


def make(folder: Path, preset_name: str) -> None:
    """Write a preset at full size, 16 shards of random bytes."""
    from benchmarks.load_gpu import write_noise
    from loadmaster.synth import PRESETS

    preset = PRESETS[preset_name]
    write_noise(folder, preset, preset.config_of(tiny=False))


def load(folder: str, name: str, sizes: tuple[int, int], rank: int, port: int, answer: Any) -> None:
    """Build and load a rank of the model in this process, and send what was measured; ``sizes`` are those of pp and tp."""
    pp, tp = sizes
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": pp * tp, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in world.items()} if pp * tp > 1 else {})
    way = FORMATS[name]
    os.environ.update(way.environment)
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader

    from loadmaster.integrations.vllm import register

    register()
    torch.cuda.set_device(rank)
    arguments = {"model": folder, "dtype": "bfloat16", "max_model_len": 512, "enforce_eager": True}
    if pp * tp > 1:
        parallel = {"pipeline_parallel_size": pp, "tensor_parallel_size": tp}
        arguments |= {
            **parallel,
            "distributed_executor_backend": "external_launcher",
            "disable_custom_all_reduce": True,
        }
    config = EngineArgs(
        **arguments, use_tqdm_on_load=False, skip_tokenizer_init=True, **way.engine
    ).create_engine_config()
    found: dict[str, Any] = {}
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(pp * tp, rank, f"tcp://127.0.0.1:{port}", rank, "nccl")
        parallel_state.initialize_model_parallel(tp, pp)
        loader = get_model_loader(config.load_config)
        write = loader.load_weights

        def timed(model: Any, model_config: Any) -> None:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            torch.distributed.barrier()
            allocated, found["begin"] = torch.cuda.memory_allocated(), time.monotonic()
            write(model, model_config)
            torch.cuda.synchronize()
            found["end"] = time.monotonic()
            found["torch_extra_bytes"] = torch.cuda.max_memory_allocated() - allocated
            found["digest"], found["parameter_bytes"] = digest(model)

        loader.load_weights = timed
        loader.load_model(vllm_config=config, model_config=config.model_config)
    answer.send(found)
    answer.close()


def digest(model: Any, leave_out: Collection[str] = ()) -> tuple[str, int]:
    """Return a digest of all parameters, by sums of their bytes that depend on the place, and their size.

    Parameters without memory, of towers that vLLM left out, are left out too.
    """
    import torch

    whole, num_bytes = hashlib.sha256(), 0
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in sorted((n, p) for n, p in parameters.items() if n not in leave_out and not p.is_meta):
        raw = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
        sums = []
        for part in raw.split(2**24):
            place = torch.arange(1, part.numel() + 1, device=part.device)
            sums.append(int((part.long() * (place % 999_983)).sum()))
        num_bytes += raw.numel()
        whole.update(repr((name, str(parameter.dtype), tuple(parameter.shape), sums)).encode())
    return whole.hexdigest()[:16], num_bytes


def measure(folder: str, name: str, sizes: tuple[int, int], number: int) -> dict[str, Any]:
    """Load once in forked processes, one for each rank, and watch the memory of their devices meanwhile."""
    import pynvml

    ranks = range(sizes[0] * sizes[1])
    devices = [pynvml.nvmlDeviceGetHandleByIndex(rank) for rank in ranks]
    context = multiprocessing.get_context("fork")
    started = []
    for rank in ranks:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=load, args=(folder, name, sizes, rank, 29_000 + number, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    used: list[tuple[float, list[int]]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            used.append((time.monotonic(), [pynvml.nvmlDeviceGetMemoryInfo(device).used for device in devices]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers: list[dict[str, Any]] = [receiver.recv() for _, receiver in started]
    except EOFError:
        for process, _ in started:
            process.kill()
        raise SystemExit(f"{name}: a process that loads has ended; its error is above") from None
    finally:
        over.set()
        watcher.join()
        for process, _ in started:
            process.join()
    begin, end = min(a["begin"] for a in answers), max(a["end"] for a in answers)
    before = [memory for at, memory in used if at <= begin][-1]
    while_loading = [memory for at, memory in used if begin <= at <= end] or [before]
    extra = [max(memory[rank] for memory in while_loading) - before[rank] for rank in ranks]
    return {
        "torch_extra_bytes": max(a["torch_extra_bytes"] for a in answers),
        "digest": " ".join(a["digest"] for a in answers),
        "parameter_bytes": sum(a["parameter_bytes"] for a in answers),
        "seconds": end - begin,
        "extra_bytes": max(extra),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--preset", default="qwen3")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("-pp", "--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("-tp", "--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--limit", type=float, default=float("inf"), help="begin no load after so many seconds")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    if args.make:
        make(args.folder, args.preset)
        return
    begin = time.monotonic()
    import pynvml
    import torch
    import vllm
    from vllm.model_executor.model_loader import get_model_loader  # noqa: F401  # imported before the fork

    pynvml.nvmlInit()
    missing = [n for n in args.formats if (package := FORMATS[n].package) and find_spec(package) is None]
    formats = [n for n in args.formats if n not in missing]
    print(*(f"{n}: {FORMATS[n].package} is not installed" for n in missing), sep="\n", flush=True)
    if not args.cold:
        for file in args.folder.glob("*.safetensors"):
            file.read_bytes()
    sizes = (args.pipeline_parallel_size, args.tensor_parallel_size)
    runs: dict[str, list[dict[str, Any]]] = {n: [] for n in formats}
    loads = [n for turn in range(args.rounds) for n in (formats, formats[::-1])[turn % 2]]
    for number, name in enumerate(loads):
        if time.monotonic() - begin > args.limit:
            print(f"{len(loads) - number} loads are left out for time", flush=True)
            break
        if args.cold:
            drop(args.folder)
        runs[name].append(measure(str(args.folder), name, sizes, number))
        print(f"{name:26s} {runs[name][-1]}", flush=True)
    digests = {run["digest"] for of_format in runs.values() for run in of_format}
    table = {n: summary(of_format) for n, of_format in runs.items() if of_format}
    for name, row in table.items():
        ratio = row["seconds"] / table["loadmaster"]["seconds"] if "loadmaster" in table else float("nan")
        extra = f"{row['extra_bytes'] / 2**20:7.0f} MiB besides"
        print(f"{name:26s} {row['seconds']:7.3f} s ({row['least']:.3f} to {row['most']:.3f}), {ratio:5.2f} ×, {extra}")
    print("parameters are equal" if len(digests) == 1 else f"PARAMETERS DIFFER: {digests}")
    if args.results:
        device = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        versions = {"vllm": vllm.__version__, "torch": torch.__version__}
        report = {
            "device": device,
            "pp": sizes[0],
            "tp": sizes[1],
            "versions": versions,
            "cold": args.cold,
            "equal": len(digests) == 1,
            "formats": table,
        }
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(len(digests) != 1)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of the seconds, their range, and the largest memory."""
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "extra_bytes": max(run["extra_bytes"] for run in runs),
        "torch_extra_bytes": max(run["torch_extra_bytes"] for run in runs),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
