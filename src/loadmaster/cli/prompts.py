"""The prompts and sampling parameters of `generate`, from its command line."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadmaster.cli.options import number, positive, whole
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.workers import SamplingParams

SOURCES = ("prompt", "prompt_token_ids", "prompts_file")


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the prompts, and how the answers are sampled."""
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue; repeatable")
    prompts.add_argument(
        "--prompt-token-ids",
        action="append",
        type=_token_ids,
        metavar="N,N,…",
        help="a prompt as token ids; repeatable",
    )
    prompts.add_argument(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help="""prompts in JSON, one on each line: a string, a list of token ids, or {"prompt": …} with one of them""",
    )
    prompts.add_argument("-n", type=positive, default=1, metavar="N", help="answers to each prompt (default: 1)")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--max-tokens", type=whole, default=16, metavar="N", help="most tokens of an answer (default: 16)"
    )
    sampling.add_argument(
        "--min-tokens", type=whole, default=0, metavar="N", help="do not end an answer before N tokens (default: 0)"
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
    sampling.add_argument(
        "--min-p",
        type=number,
        default=0.0,
        metavar="P",
        help="sample from tokens with at least P times the likeliest token's probability (0: all)",
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=number,
        default=1.0,
        metavar="X",
        help="divide the logits of tokens in prompt or answer by X, or multiply negative ones (1: no change)",
    )
    sampling.add_argument(
        "--presence-penalty",
        type=number,
        default=0.0,
        metavar="X",
        help="subtract X from the logits of tokens in the answer",
    )
    sampling.add_argument(
        "--frequency-penalty",
        type=number,
        default=0.0,
        metavar="X",
        help="subtract X from a token's logit for each time that it is in the answer",
    )
    sampling.add_argument(
        "--seed",
        type=whole,
        metavar="N",
        help="seed of the sampling; further answers to a prompt use N + 1 and so on (default: random)",
    )
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text; repeatable"
    )
    sampling.add_argument(
        "--stop-token-ids", type=_token_ids, default=[], metavar="N,N,…", help="end an answer after one of these tokens"
    )
    sampling.add_argument("--ignore-eos", action="store_true", help="continue after the model's end-of-text token")
    sampling.add_argument(
        "--structured-outputs",
        type=_object,
        metavar="JSON",
        help="""what an answer has to look like, with vLLM's names: {"json": SCHEMA}, {"regex": …}, {"choice": […]} and others""",
    )
    sampling.add_argument(
        "--logprobs",
        type=whole,
        metavar="N",
        help="with --json: the log probability of each token, and those of the N likeliest tokens",
    )
    sampling.add_argument(
        "--prompt-logprobs", type=whole, metavar="N", help="with --json: the same for the tokens of the prompt"
    )


def read_prompts(args: argparse.Namespace) -> list[str | list[int]]:
    """Return the prompts of a command line, each text or token ids.

    Raises:
        UsageError: there are none, they come from several options, or the file cannot be read.
    """
    given = [name for name in SOURCES if getattr(args, name) is not None]
    if len(given) != 1:
        raise UsageError("give exactly one of --prompt, --prompt-token-ids and --prompts-file")
    if not args.json and (args.logprobs is not None or args.prompt_logprobs is not None):
        raise UsageError("--logprobs and --prompt-logprobs are printed with --json only")
    if args.prompts_file is not None:
        return _prompts_of_file(args.prompts_file)
    return list(getattr(args, given[0]))


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling parameters of a command line.

    Raises:
        UsageError: one is out of range.
    """
    from loadmaster.errors import RequestError
    from loadmaster.workers import SamplingParams, StructuredOutputs

    given = args.structured_outputs
    names = {field.name for field in fields(StructuredOutputs)} - {"after"}
    if unknown := sorted((given or {}).keys() - names):
        raise UsageError(f"--structured-outputs has {unknown[0]!r}, which is none of its fields")
    try:
        return SamplingParams(
            max_tokens=args.max_tokens,
            min_tokens=args.min_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
            seed=args.seed,
            stop_token_ids=tuple(args.stop_token_ids),
            ignore_eos=args.ignore_eos,
            logprobs=args.logprobs,
            prompt_logprobs=args.prompt_logprobs,
            structured_outputs=None if given is None else StructuredOutputs(**given),
        )
    except RequestError as error:
        raise UsageError(str(error)) from error


def _prompts_of_file(path: Path) -> list[str | list[int]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts-file {path}: {error}") from error
    prompts = [_prompt(line, f"--prompts-file {path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"--prompts-file {path} has no prompts")
    return prompts


def _prompt(line: str, where: str) -> str | list[int]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if isinstance(value, dict):
        value = value.get("prompt")
    if isinstance(value, str) or (isinstance(value, list) and all(type(t) is int for t in value)):
        return value
    raise UsageError(f"""{where}: expected a string, a list of token ids, or an object {{"prompt": …}}""")


def _token_ids(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids such as 3,4,5")
    return [int(t) for t in text.split(",")]


def _object(text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object")
    return value
