"""``loadmaster generate MODEL``: one prompt, one answer."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadmaster.cli.interrupt import Interruptible
from loadmaster.cli.options import (
    add_capacity_arguments,
    add_device_argument,
    add_model_arguments,
    add_weights_argument,
    number,
    tokens,
    whole,
)

if TYPE_CHECKING:
    from loadmaster.engine import Engine, Tokenizer
    from loadmaster.workers import SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    add_capacity_arguments(parser)
    add_device_argument(parser)
    add_weights_argument(parser)
    parser.add_argument(
        "--max-model-len", type=tokens, metavar="N", help="most tokens of prompt and answer (default: the model's)"
    )
    sampling = parser.add_argument_group("request")
    sampling.add_argument("--prompt", metavar="TEXT", help="text to continue")
    sampling.add_argument("--prompt-token-ids", type=_token_ids, metavar="N,N,…", help="the prompt as token ids")
    sampling.add_argument(
        "--max-tokens", type=whole, default=16, metavar="N", help="most tokens to generate (default: 16)"
    )
    sampling.add_argument(
        "--temperature", type=number, default=0.0, metavar="T", help="temperature (default: 0, greedy)"
    )
    sampling.add_argument(
        "--top-p",
        type=number,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens whose probabilities sum to P",
    )
    sampling.add_argument(
        "--top-k", type=whole, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)"
    )
    sampling.add_argument("--seed", type=whole, metavar="N", help="seed of the sampling (default: random)")
    sampling.add_argument("--ignore-eos", action="store_true", help="continue after the model's end-of-text token")


def run(args: argparse.Namespace) -> int:
    """Plan, load, and print the answer as it comes; with ``--json`` one object at the end."""
    with Interruptible():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from loadmaster.cli.planning import run_plan
    from loadmaster.cli.progress import ByteProgress
    from loadmaster.engine import Engine, Tokenizer, refuse_options, refuse_plan, require_run_extra, speculative_tokens
    from loadmaster.errors import UsageError

    if (args.prompt is None) == (args.prompt_token_ids is None):
        raise UsageError("give exactly one of --prompt and --prompt-token-ids")
    require_run_extra()
    refuse_options(args.tensor_parallel_size, args.speculative_config, args.data_parallel_size)
    params = _params(args)
    begin = time.perf_counter()
    run = run_plan(args)
    plan = run.plan
    refuse_plan(plan)
    planned = time.perf_counter()
    tokenizer = Tokenizer(plan.model_path)
    needed_bytes = sum(plan.rank(r).needed_bytes for r in range(plan.num_ranks))
    progress = ByteProgress(needed_bytes, "loading")
    with Engine(
        plan,
        max_model_len=args.max_model_len,
        on_progress=progress.advance,
        device=args.device,
        num_speculative_tokens=speculative_tokens(args.speculative_config),
    ) as engine:
        with progress:
            prompt = args.prompt_token_ids or tokenizer.encode(args.prompt or "")
            engine.check(prompt)
            engine.wait_ready()
        answer = _answer(engine, tokenizer, prompt, params, show=not args.json)
    if args.json:
        from loadmaster.report.json import dumps

        timings = {"plan_s": planned - begin, "load_s": answer.begin - planned, **answer.timings()}
        print(dumps({"prompt_token_ids": list(prompt), **answer.as_json(), "weights": run.choice, "timings": timings}))
    return 0


@dataclass
class _Answer:
    """The generated tokens, and the times of the start, the first token and the last token."""

    begin: float
    first: float = 0.0
    last: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def timings(self) -> dict[str, float | None]:
        """Return the seconds of prefill and decoding, and the decoding rate (None if there was only one token)."""
        decode_s = self.last - self.first
        rate = (len(self.token_ids) - 1) / decode_s if len(self.token_ids) > 1 and decode_s > 0 else None
        return {"prefill_s": self.first - self.begin, "decode_s": decode_s, "tokens_per_s": rate}

    def as_json(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return {"token_ids": self.token_ids, "text": self.text, "finish_reason": self.finish_reason}


def _answer(
    engine: Engine, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams, *, show: bool
) -> _Answer:
    """Generate; ``show`` prints the text as it comes, or token ids if there is no tokenizer."""
    from loadmaster.engine import complete

    answer = _Answer(time.perf_counter())
    for piece in complete(engine, tokenizer, prompt, params):
        if piece.token_id is not None:
            answer.last = time.perf_counter()
            answer.first = answer.first or answer.last
            answer.token_ids.append(piece.token_id)
        answer.text += piece.text
        answer.finish_reason = piece.finish_reason
        if show:
            ids_only = not tokenizer.exists and piece.token_id is not None
            print(f"{piece.token_id} " if ids_only else piece.text, end="", flush=True)
    if show:
        print()
    return answer


def _params(args: argparse.Namespace) -> SamplingParams:
    from loadmaster.errors import RequestError, UsageError
    from loadmaster.workers import SamplingParams

    try:
        return SamplingParams(
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            seed=args.seed,
            ignore_eos=args.ignore_eos,
        )
    except RequestError as error:
        raise UsageError(str(error)) from error


def _token_ids(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 3,4,5")
    return [int(t) for t in text.split(",")]
