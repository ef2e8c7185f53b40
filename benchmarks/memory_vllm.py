"""Memory of vLLM on a GPU: what `plan --engine vllm` predicts, against what vLLM's worker reports.

    python -m benchmarks.memory_vllm [--cases NAME …] [--results FILE]

Needs vLLM and a GPU of its own. Each case is a model of published width with few layers whose weights vLLM makes up
(``load_format`` dummy), in a process of its own. Compared are the model's memory, the peak of a batch beside it with what
vLLM counts for CUDA graphs, what is left for the KV cache, and the tokens that fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UTILIZATION = 0.9
LENGTH = 8192


@dataclass(frozen=True)
class Case:
    """A preset with a changed config, and options of vLLM."""

    preset: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case("llama"),
    "llama, eager": Case("llama", {}, {"enforce_eager": True}),
    "qwen3-moe, 12 layers": Case("qwen3-moe", {"num_hidden_layers": 12}),
    "qwen3": Case("qwen3"),
    "mistral": Case("mistral"),
    "deepseek-v3, 4 layers": Case(
        "deepseek-v3", {"num_hidden_layers": 4, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    ),
}


def report(model: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Start an engine in this process, and return what its worker says."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    llm = LLM(
        str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=LENGTH,
        gpu_memory_utilization=UTILIZATION,
        **options,
    )
    executor = llm.llm_engine.model_executor
    worker = executor.driver_worker.worker
    cache = llm.llm_engine.vllm_config.cache_config
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    return {
        "model": int(worker.model_runner.model_memory_usage),
        "peak": int(worker.peak_activation_memory),
        "graphs": int(worker.cudagraph_memory_estimate),
        "cache": int(worker.available_kv_cache_memory_bytes),
        "blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
    }


def predict(model: Path, device_bytes: int, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is predicted of the only rank, for the same number of tokens and requests at a time."""
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.plan import build_plan, prove
    from loadmaster.sizing import MemoryOptions, measure_proof

    proof = prove(build_plan(open_checkpoint(model), dtype="BF16"))
    options = MemoryOptions(
        (device_bytes,), LENGTH, found["max_num_seqs"], found["max_num_batched_tokens"], UTILIZATION
    )
    memory = measure_proof(proof, "vllm", options)
    (rank,) = memory.ranks
    return {
        "model": rank.parameters_bytes,
        "peak": rank.activations_bytes + rank.logits_bytes,
        "graphs": rank.graphs_bytes,
        "runtime": rank.runtime_bytes,
        "cache": rank.cache_bytes,
        "blocks": memory.num_blocks,
        "tokens": memory.num_tokens,
    }


def measure(case: Case) -> dict[str, Any]:
    """Return what vLLM reports and what was predicted."""
    from benchmarks.memory_gpu import total_memory
    from loadmaster.synth import PRESETS, write_full_size

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_full_size(PRESETS[case.preset], model, overrides=case.config)
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory_vllm",
            "--one",
            str(model),
            "--options",
            json.dumps(case.options),
        ]
        made = subprocess.run(command, capture_output=True, text=True, timeout=200)
        if made.returncode:
            return {"error": (made.stdout + made.stderr)[-1500:]}
        found = json.loads(made.stdout.splitlines()[-1])
        return {"vllm": found, "predicted": predict(model, total_memory(), found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(report(args.one, args.options)), flush=True)
        os._exit(0)  # vLLM's threads outlive main
    found: dict[str, Any] = {}
    print("| model | what | predicted GiB | vLLM GiB | off |")
    for name in args.cases:
        found[name] = made = measure(CASES[name])
        if "error" in made:
            print(f"| {name} | failed: {made['error'].splitlines()[-1][:150]} |", flush=True)
            continue
        for what in ("model", "peak", "graphs", "cache"):
            a, b = made["predicted"][what], made["vllm"][what]
            off = f"{a / b - 1:+.1%}" if b else "-"
            print(f"| {name} | {what} | {a / 2**30:.2f} | {b / 2**30:.2f} | {off} |", flush=True)
        if args.results:
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
