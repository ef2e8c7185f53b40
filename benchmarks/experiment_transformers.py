"""An experiment: would loading for transformers be worth an integration? Two questions, each answered by numbers.

    python benchmarks/experiment_transformers.py [--gb 1.5] [--runs 5] [--results DIR]

1. Does transformers dequantise FP8 blocks as they are stored? ``Fp8Dequantize._dequantize_one`` derives the block's size
   from the shapes of weight and scales. That is the block only where it divides the weight; here it meets weights whose
   last block is ragged, beside our own and a loop over elements.
2. How long does ``from_pretrained`` take, and how long `load_rank` into host memory, for the same checkpoint, page cache
   warm? Every measurement is a process of its own in which the way runs twice, and the second pass counts. Both have every
   page of every parameter read afterwards, inside the time, for a mapping of the file is not loaded before. What memory the
   parameters lie in is told beside it: anonymous, or the file's own.

Nothing of transformers is used elsewhere for loading.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench_load_cpu import write_noise
from bench_vllm import moe_sizes

BLOCK = (128, 128)
SHAPES = [(256, 256), (128, 384), (192, 256), (576, 256), (320, 192), (130, 256)]
"""576 rows are those of ``kv_a_proj_with_mqa`` in DeepSeek-V3 and GLM-5.1."""
DENSE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 65536,
}
DENSE_LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144)


def sizes(preset: str, gb: float) -> dict[str, Any]:
    if preset == "qwen3":
        return {**DENSE, "num_hidden_layers": max(int(gb * 1e9 / DENSE_LAYER_BYTES), 1)}
    return moe_sizes(gb)


def blocks() -> list[dict[str, Any]]:
    """Dequantise each shape in three ways: element by element, ours, transformers'."""
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    from loadmaster.kernels.dequantise import dequantise_blocks

    found = []
    for rows, columns in SHAPES:
        random = torch.Generator().manual_seed(rows + columns)
        values = torch.randn(rows, columns, generator=random).to(torch.float8_e4m3fn)
        scales = torch.rand(-(-rows // BLOCK[0]), -(-columns // BLOCK[1]), generator=random) + 0.5
        expected = torch.empty(rows, columns)
        for i in range(rows):
            for j in range(columns):
                expected[i, j] = values[i, j].float() * scales[i // BLOCK[0], j // BLOCK[1]]
        ours = dequantise_blocks(values, scales, BLOCK)
        row: dict[str, Any] = {"shape": [rows, columns], "ours": bool(torch.equal(ours.float(), expected))}
        try:
            theirs = Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)
        except ValueError as error:
            row["transformers"] = f"ValueError: {error}"
        else:
            wrong = theirs.float() != expected
            row["transformers"] = (
                f"{int(wrong.sum()):,} of {wrong.numel():,} elements wrong" if wrong.any() else "equal"
            )
        found.append(row)
    return found


def touch(tensors: Iterable[Any]) -> int:
    """Read a byte of every page; return the bytes of all."""
    import torch

    total = 0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).view(torch.uint8)
        int(flat[::4096].sum())
        total += flat.numel()
    return total


def theirs(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model, {p.data_ptr(): p for p in model.parameters()}.values()


def theirs_copied(path: Path) -> Any:
    """The same, and parameters that are mappings of a file get memory of their own, as ours have."""
    model, params = theirs(path)
    mapped = [
        tuple(int(n, 16) for n in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(".safetensors")
    ]
    for param in params:
        if any(start <= param.data_ptr() < stop for start, stop in mapped):
            param.data = param.data.clone()
    return model, params


def ours(path: Path) -> Any:
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.loader import load_rank
    from loadmaster.plan import build_plan, prove

    plan = prove(build_plan(open_checkpoint(path))).require_proven()
    loaded = load_rank(plan, 0)
    return loaded, {t.data_ptr(): t for t in loaded.tensors.values()}.values()


WAYS = {"from_pretrained": theirs, "from_pretrained, copied": theirs_copied, "loadmaster": ours}


def one(way: str, path: Path) -> dict[str, float]:
    """Load twice; return seconds of both passes, and what memory the parameters are in."""
    import torch

    if way != "loadmaster":
        import transformers  # noqa: F401
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for name in ("first", "seconds"):
        before, cpu, begin = _memory(), time.process_time(), time.perf_counter()
        kept, tensors = WAYS[way](path)
        found["bytes"] = touch(tensors)
        found[name] = time.perf_counter() - begin
        found["cpu"] = time.process_time() - cpu
        after = _memory()
        found |= {f"{k}_bytes": after[k] - before[k] for k in after}
        del kept, tensors
        gc.collect()
    return found


def _memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {n: int(line.split()[1]) * 1024 for line in lines for n in ("RssAnon", "RssFile") if line.startswith(n)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.path)))
        return
    import torch
    import transformers

    result: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__, "blocks": blocks()}
    print(f"transformers {result['transformers']}; blocks of {BLOCK[0]} × {BLOCK[1]}")
    for row in result["blocks"]:
        print(
            f"  {row['shape']!s:12s} ours {'equal' if row['ours'] else 'WRONG':6s} transformers: {row['transformers']}"
        )
    result["loading"] = {}
    for preset in ("qwen3", "qwen3-moe") if args.runs else ():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            write_noise(path, preset, sizes(preset, args.gb))
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for run in range(args.runs + 1):  # the first warms the page cache
                for way in list(WAYS) if run % 2 else list(reversed(WAYS)):
                    command = [sys.executable, __file__, "--one", way, "--path", str(path)]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    if run:
                        runs[way].append(json.loads(out.splitlines()[-1]))
        result["loading"][preset] = runs
        print(f"{preset}, {runs['loadmaster'][0]['bytes'] / 1e9:.2f} GB")
        base = statistics.median(r["seconds"] for r in runs["loadmaster"])
        for way, made in runs.items():
            seconds = [r["seconds"] for r in made]
            median = statistics.median(seconds)
            print(
                f"  {way:24s} {median:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"{statistics.median(r['cpu'] for r in made):.2f} s of CPU, it / loadmaster {median / base:.2f}, first pass "
                f"{statistics.median(r['first'] for r in made):.2f} s; MB: {made[-1]['RssAnon_bytes'] / 1e6:.0f} anonymous, "
                f"{made[-1]['RssFile_bytes'] / 1e6:.0f} of files",
                flush=True,
            )
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "transformers.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
