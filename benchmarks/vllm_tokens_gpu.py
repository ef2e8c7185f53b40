"""Running engines of vLLM on a GPU: the tokens of tiny models by vLLM's own load format, and by loadmaster's.

    python -m benchmarks.vllm_tokens_gpu FOLDER [--models NAME …] [--limit SECONDS] [--results FILE]

Needs vLLM and a GPU. vLLM is imported once; every engine is a process forked from there, in which vLLM builds the model, loads
it, and answers three prompts greedily, twice. Each model is run by ``auto`` and by loadmaster, written directly and streamed:
all must have the same parameters, before vLLM processes them, and the same tokens. Some models also draft tokens (``mtp``), are
loaded again while they run (``reload``), or sleep and are loaded again (``sleep``): the tokens must stay the same. One request
runs at a time: with several, vLLM's tokens depend on how it batches them.

The models' sizes are the least that vLLM's kernels for these families take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load_formats_gpu import digest

FORMATS: dict[str, dict[str, Any]] = {
    "auto": {"load_format": "auto"},
    "loadmaster": {"load_format": "loadmaster"},
    "loadmaster, streamed": {"load_format": "loadmaster", "model_loader_extra_config": {"direct": False}},
}
PROMPTS = [[3, 4, 5], [7, 8, 9, 10], [i * 37 % 200 + 3 for i in range(100)]]
ENGINE = {
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 1,
    "gpu_memory_utilization": 0.3,
    "skip_tokenizer_init": True,
    "seed": 0,
    "enforce_eager": True,
    "disable_log_stats": True,
}
MTP = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
FLASH_MLA = {"attention_backend": "FLASHMLA_SPARSE"}
"""What needs nothing beside vLLM: its first choice on Hopper is compiled by nvidia-cutlass-dsl."""
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
SPARSE = {
    **LATENT,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "qk_head_dim": 256,
    "head_dim": 64,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {"head_dim": 128}),
    "qwen3-moe-fp8": ("qwen3-moe-fp8", {"head_dim": 128, "hidden_size": 256, "moe_intermediate_size": 256}),
    "deepseek-v3": ("deepseek-v3", {**LATENT, "max_position_embeddings": 4096}),
    "glm-5.1-fp8": ("glm-5.1-fp8", {**SPARSE, "max_position_embeddings": 4096}),
}
"""Name → preset, and changes to its tiny config."""
RUNS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "qwen3": ("qwen3", {}, None),
    "qwen3, reload": ("qwen3", {}, "reload"),
    "qwen3, sleep": ("qwen3", {"enable_sleep_mode": True}, "sleep"),
    "qwen3-moe-fp8": ("qwen3-moe-fp8", {}, None),
    "deepseek-v3": ("deepseek-v3", {}, None),
    "deepseek-v3, mtp": ("deepseek-v3", MTP, None),
    "glm-5.1-fp8": ("glm-5.1-fp8", FLASH_MLA, None),
    "glm-5.1-fp8, mtp": ("glm-5.1-fp8", {**FLASH_MLA, **MTP}, None),
}
"""Name → model, arguments of the engine, and what is done while it runs."""


def make(folder: Path, name: str) -> Path:
    """Write a model, unless it is there."""
    from loadmaster.audit.case import ACCEPTED
    from loadmaster.synth import PRESETS, write_tiny

    preset, changes = MODELS[name]
    if not (folder / name).exists():
        write_tiny(PRESETS[preset], folder / name, overrides={**ACCEPTED.get(preset, {}), **changes})
    return folder / name


def _replaced(draft: Any) -> set[str]:
    """Return the parameters of a draft in whose place vLLM puts the model's: embedding and head, which may stay unwritten."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    modules = dict(draft.named_modules(remove_duplicate=False))
    return {f"{name}.weight" for name, module in modules.items() if isinstance(module, VocabParallelEmbedding)}


def run(model: str, engine: dict[str, Any], then: str | None) -> dict[str, Any]:
    """Return what an engine in this process answers, and a digest of its parameters for each model that it loads."""
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader import base_loader

    from loadmaster.integrations.vllm import register

    register()
    digests: list[str] = []
    load = base_loader.BaseModelLoader.load_model
    process = base_loader.process_weights_after_loading

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        def digested(built: Any, config: Any, *rest: Any) -> None:
            digests.append(digest(built, _replaced(built) if config.runner_type == "draft" else ())[0])
            process(built, config, *rest)

        base_loader.process_weights_after_loading = digested
        return load(self, *args, **kwargs)

    base_loader.BaseModelLoader.load_model = load_model
    params = SamplingParams(temperature=0, max_tokens=16, detokenize=False, ignore_eos=True)

    def tokens() -> list[list[int]]:
        llm.reset_prefix_cache()
        done = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
        return [list(d.outputs[0].token_ids) for d in done]

    try:
        llm = LLM(model, **{**ENGINE, **engine})
        found: dict[str, Any] = {"digests": list(digests), "tokens": tokens()}
    except Exception as error:
        traceback.print_exc()
        return {"digests": digests, "error": f"{type(error).__name__}: {error}"[:500]}
    if then == "reload":
        llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
    if then == "sleep":
        llm.sleep(level=2)
        llm.wake_up()
        llm.collective_rpc("reload_weights")
    return {**found, "again": tokens()}


def _child(model: str, engine: dict[str, Any], then: str | None, log: Path, answer: Any) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        answer.send(run(model, engine, then))
    except BaseException as error:
        traceback.print_exc()
        answer.send({"error": f"{type(error).__name__}: {error}"[:500]})
    os._exit(0)


def in_a_fork(work: Callable[..., None], *args: Any, limit_s: float) -> dict[str, Any]:
    """Return what ``work`` sends from a forked process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*args, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = (
            receiver.recv() if receiver.poll(limit_s) else {"error": f"no answer in {limit_s:.0f} s"}
        )
    except EOFError:
        found = {"error": "its process ended"}
    process.kill()
    process.join()
    return found


def compare(found: dict[str, dict[str, Any]]) -> str:
    """Return what differs between the formats of one run; ``equal`` where nothing does."""
    if failed := {name: f["error"] for name, f in found.items() if "error" in f}:
        loaded = {tuple(f.get("digests", ())) for f in found.values()}
        return f"FAILED ({'parameters equal' if len(loaded) == 1 and () not in loaded else 'parameters unknown'}): {failed}"
    first = next(iter(found.values()))
    for name, f in found.items():
        for what in ("digests", "tokens"):
            if f[what] != first[what]:
                return f"DIFFERENT: {what} of {name}"
        if f["again"] != f["tokens"]:
            return f"DIFFERENT: the second answer of {name}"
    return "equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--limit", type=float, default=float("inf"), help="begin no engine after so many seconds")
    parser.add_argument("--each", type=float, default=150, help="seconds that an engine may take")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    begin = time.monotonic()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        make(args.folder, RUNS[name][0])
    import torch
    import vllm
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.gpu_worker
    from vllm import LLM, SamplingParams  # noqa: F401  # imported before the fork

    report: dict[str, Any] = {"versions": {"vllm": vllm.__version__, "torch": torch.__version__}, "runs": {}}
    for name in args.models:
        model, engine, then = RUNS[name]
        found: dict[str, dict[str, Any]] = {}
        for way, options in FORMATS.items():
            if time.monotonic() - begin > args.limit:
                print(f"{name}, {way}: left out for time", flush=True)
                continue
            at = time.monotonic()
            log = args.folder / f"{name}, {way}.log"
            arguments = (str(args.folder / model), {**engine, **options}, then, log)
            found[way] = in_a_fork(_child, *arguments, limit_s=args.each)
            print(f"{name}, {way}: {time.monotonic() - at:.0f} s {found[way].get('error', '')}", flush=True)
        verdict = compare(found) if found else "not run"
        report["runs"][name] = {"verdict": verdict, "formats": found}
        print(f"{name}: {verdict}", flush=True)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(any(r["verdict"] != "equal" for r in report["runs"].values()))


if __name__ == "__main__":
    main()
