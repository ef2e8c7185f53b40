"""``loadmaster generate MODEL``: answers to prompts, computed together."""

from __future__ import annotations

import argparse
import os
import time

from loadmaster.cli.interrupt import Interruptible
from loadmaster.cli.launched import run_member
from loadmaster.cli.options import (
    add_capacity_arguments,
    add_device_argument,
    add_download_dir_argument,
    add_engine_arguments,
    add_model_arguments,
    add_weights_argument,
    capacity,
    tokens,
)
from loadmaster.cli.prompts import add_prompt_arguments, read_prompts, sampling_params

REPORT_WITHIN_S = 5.0
"""How long stages may take to report how they have spent their time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_download_dir_argument(parser)
    add_capacity_arguments(parser)
    add_device_argument(parser)
    add_weights_argument(parser)
    parser.add_argument(
        "--max-model-len", type=tokens, metavar="N", help="most tokens of prompt and answer (default: the model's)"
    )
    add_engine_arguments(parser)
    add_prompt_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan, load, and print the answers as they come; with ``--json`` one object at the end."""
    with Interruptible():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from loadmaster.cli.planning import run_plan
    from loadmaster.cli.progress import ByteProgress
    from loadmaster.engine import Engine, Tokenizer, refuse_options, refuse_plan, require_run_extra, speculative_tokens
    from loadmaster.engine.launched import require_runnable
    from loadmaster.workers.launch import Launch

    launch = Launch.of(os.environ)
    if launch is not None and launch.rank > 0:
        return run_member(args, launch)
    texts = read_prompts(args)
    require_run_extra()
    refuse_options(args.speculative_config, args.data_parallel_size)
    params = sampling_params(args)
    begin = time.perf_counter()
    run = run_plan(args, lambda plan: require_runnable(plan, args.device))
    plan = run.plan
    refuse_plan(plan)
    planned = time.perf_counter()
    tokenizer = Tokenizer(plan.model_path)
    needed_bytes = sum(plan.rank(r).needed_bytes for r in range(plan.num_ranks))
    progress = ByteProgress(needed_bytes, "loading")
    with Engine(
        plan,
        max_model_len=args.max_model_len,
        capacity=capacity(args),
        on_progress=progress.advance,
        device=args.device,
        num_speculative_tokens=speculative_tokens(args.speculative_config),
    ) as engine:
        from loadmaster.cli.answers import answer_all, statistics_object

        with progress:
            prompts = [tokenizer.encode(t) if isinstance(t, str) else t for t in texts]
            for prompt in prompts:
                engine.check(prompt, params)
            if params.structured_outputs is not None:
                engine.learn(tokenizer.vocabulary())
                params = engine.compiled(params)
            engine.wait_ready()
        loaded = time.perf_counter()
        answers = answer_all(engine, tokenizer, prompts, params, args.n, args.stop, show=not args.json)
        generated = time.perf_counter()
        statistics = engine.statistics(within_s=REPORT_WITHIN_S)
    if args.json:
        from loadmaster.report.json import dumps

        timings: dict[str, float | None] = {"plan_s": planned - begin, "load_s": loaded - planned}
        rest = {"weights": run.choice, "statistics": statistics_object(statistics, engine.capacity.block_size)}
        if len(answers) == 1:
            [answer] = answers
            timings |= answer.timings()
            print(dumps({**answer.as_json(tokenizer, params), **rest, "timings": timings}))
        else:
            objects = [
                {"prompt": a.prompt, "index": a.index, **a.as_json(tokenizer, params), "timings": a.timings()}
                for a in answers
            ]
            print(dumps({"answers": objects, **rest, "timings": {**timings, "generate_s": generated - loaded}}))
    return 0
