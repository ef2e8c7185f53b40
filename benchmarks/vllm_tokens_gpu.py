"""Running engines of vLLM on a GPU: the tokens of tiny models by vLLM's own load format, and by loadmaster's.

    python -m benchmarks.vllm_tokens_gpu FOLDER [--models NAME …] [--recent] [--limit SECONDS] [--results FILE]

Needs vLLM and a GPU. vLLM is imported once; every rank of an engine is a process forked from there, in which vLLM builds the
model, loads it, and answers three prompts greedily, twice. Each model is run by ``auto`` and by loadmaster, written directly and
streamed: every rank must have the same parameters, before vLLM processes them, and give the same tokens. Some models also draft
tokens (``mtp``), are loaded again while they run (``reload``), or sleep and are loaded again (``sleep``): the tokens must stay
the same. One request runs at a time: with several, vLLM's tokens depend on how it batches them.

Engines of several ranks are vLLM's ``external_launcher``. Where the machine has fewer GPUs than ranks, they share the first one:
NCCL takes them for ranks of different hosts (NCCL_HOSTID) and speaks through sockets, which is slow and changes no value.

The models' sizes are the least that vLLM's kernels for these families take (`vllm_models`). ``--recent`` runs those that only
vLLM 0.33 is described for. What fails is kept with its reason, and the others run: ``FAILED (parameters equal)`` where every
format loaded the same before. ``--formats`` leaves formats out where time is short.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.load_formats_gpu import digest
from benchmarks.vllm_models import RECENT, RUNS, make

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
    "kv_cache_memory_bytes": 1 << 30,  # not measured: ranks that share a GPU would count each other's memory
    "skip_tokenizer_init": True,
    "seed": 0,
    "enforce_eager": True,
    "disable_log_stats": True,
}


def num_ranks(engine: dict[str, Any]) -> int:
    """Return the number of ranks of an engine."""
    return int(engine.get("pipeline_parallel_size", 1) * engine.get("tensor_parallel_size", 1))


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


def _child(model: str, engine: dict[str, Any], then: str | None, log: Path, join: dict[str, str], answer: Any) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= join
    try:
        answer.send(run(model, engine, then))
    except BaseException as error:
        traceback.print_exc()
        answer.send({"error": f"{type(error).__name__}: {error}"[:500]})
    os._exit(0)


def _joins(ranks: int) -> list[dict[str, str]]:
    """Return the environment of each rank: what torchrun would set, and how ranks of one GPU find each other."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = torch.cuda.device_count() < ranks
    joins = []
    for rank in range(ranks):
        join = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        apart = {"NCCL_HOSTID": f"rank{rank}", "NCCL_NET": "Socket", "NCCL_SOCKET_IFNAME": "lo"}
        joins.append({**join, "LOCAL_RANK": "0", **apart} if shared else {**join, "LOCAL_RANK": str(rank)})
    return joins


def launch(model: str, engine: dict[str, Any], then: str | None, log: Path, limit_s: float) -> dict[str, Any]:
    """Return what the ranks of an engine answer, each in a forked process: parameters of all, tokens of the first."""
    ranks = num_ranks(engine)
    if ranks > 1:
        engine = {**engine, "distributed_executor_backend": "external_launcher", "disable_custom_all_reduce": True}
    end = time.monotonic() + limit_s
    context = multiprocessing.get_context("fork")
    started = []
    for rank, join in enumerate(_joins(ranks)):
        receiver, sender = context.Pipe(duplex=False)
        file = log.with_name(f"{log.stem}, rank {rank}.log") if ranks > 1 else log
        process = context.Process(target=_child, args=(model, engine, then, file, join, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    found: dict[int, dict[str, Any]] = {}
    while len(found) < ranks:
        waiting = {receiver: rank for rank, (_, receiver) in enumerate(started) if rank not in found}
        ready = wait(list(waiting), max(0, end - time.monotonic()))
        if not ready:
            found |= {rank: {"error": f"no answer in {limit_s:.0f} s"} for rank in waiting.values()}
        for receiver in ready:
            try:
                answer = receiver.recv()
            except EOFError:
                answer = {"error": "its process ended"}
            found[waiting[receiver]] = answer
            if "error" in answer:
                end = min(end, time.monotonic() + 10)  # the others wait for it
    for process, _ in started:
        process.kill()
        process.join()
    return _of_all([found[rank] for rank in range(ranks)])


def _of_all(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers of all ranks as one; ranks that answer otherwise than the first are an error."""
    made = {**found[0], "digests": [digest for f in found for digest in f.get("digests", ())]}
    if failed := {rank: f["error"] for rank, f in enumerate(found) if "error" in f}:
        return {
            "digests": made["digests"],
            "error": "; ".join(f"rank {rank}: {error}" for rank, error in failed.items()),
        }
    if any(f[what] != made[what] for f in found for what in ("tokens", "again")):
        return {**made, "error": "the ranks give different tokens"}
    return made


def compare(found: dict[str, dict[str, Any]], formats: Sequence[str]) -> str:
    """Return what differs between the formats of one run; ``equal`` where all of ``formats`` have run and nothing does."""
    if missing := set(formats) - found.keys():
        return f"NOT COMPARED: {', '.join(sorted(missing))} did not run"
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
    parser.add_argument("--models", nargs="+", choices=[*RUNS, *RECENT], help="by default those without --recent")
    parser.add_argument("--recent", action="store_true", help="the models that only vLLM 0.33 is described for")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--limit", type=float, default=float("inf"), help="begin no engine after so many seconds")
    parser.add_argument("--each", type=float, default=150, help="seconds that an engine may take")
    parser.add_argument("--results", type=Path, help="a file of an earlier call keeps its other runs")
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    begin = time.monotonic()
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = {**RUNS, **RECENT}
    names = args.models or list(RECENT if args.recent else RUNS)
    models = {chosen[name][0]: make(args.folder, chosen[name][0]) for name in names}
    import torch
    import vllm
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.gpu_worker
    from vllm import LLM, SamplingParams  # noqa: F401  # imported before the fork

    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    report: dict[str, Any] = {"versions": versions, "gpus": torch.cuda.device_count(), "runs": {}}
    if args.results and args.results.exists():
        earlier = json.loads(args.results.read_text())
        if any(earlier[key] != report[key] for key in ("versions", "gpus")):
            raise SystemExit(f"{args.results} is of other versions or GPUs")
        report["runs"] = earlier["runs"]
    for name in names:
        model, engine, then = chosen[name]
        path, needed = models[model]
        found: dict[str, dict[str, Any]] = {}
        for way in args.formats:
            if time.monotonic() - begin > args.limit:
                print(f"{name}, {way}: left out for time", flush=True)
                continue
            at = time.monotonic()
            log = args.folder / f"{name}, {way}.log"
            found[way] = launch(str(path), {**needed, **engine, **FORMATS[way]}, then, log, args.each)
            print(f"{name}, {way}: {time.monotonic() - at:.0f} s {found[way].get('error', '')}", flush=True)
        verdict = compare(found, args.formats)
        report["runs"][name] = {"verdict": verdict, "formats": found}
        print(f"{name}: {verdict}", flush=True)
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        lines = json.dumps(report, indent=1)
        args.results.write_text(re.sub(r"\[[\d,\s]+\]", lambda tokens: re.sub(r"\s+", " ", tokens[0]), lines) + "\n")
    sys.exit(any(r["verdict"] != "equal" for r in report["runs"].values()))


if __name__ == "__main__":
    main()
