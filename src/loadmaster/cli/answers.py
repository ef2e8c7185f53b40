"""The answers of `generate`: computed together, printed as they come, or reported as JSON with what was measured."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loadmaster.engine import (
    AnswerText,
    Engine,
    Piece,
    Statistics,
    Stream,
    TextOptions,
    Tokenizer,
    params_of_choices,
)
from loadmaster.engine.request import Event
from loadmaster.errors import LoadmasterError
from loadmaster.workers import SamplingParams
from loadmaster.workers.batch import PositionLogprobs, TokenLogprob


@dataclass(slots=True)
class Answer:
    """Answer number ``index`` to prompt number ``prompt``, so far."""

    prompt: int
    index: int
    prompt_token_ids: Sequence[int]
    text: AnswerText
    stream: Stream | None = None
    pieces: list[Piece] = field(default_factory=list)
    last: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the answer."""
        return [p.token_id for p in self.pieces if p.token_id is not None]

    def add(self, event: Event) -> list[Piece]:
        """Add what the engine has sent, and return it as pieces.

        Raises:
            LoadmasterError: the request or the engine failed.
        """
        if isinstance(event, LoadmasterError):
            raise event
        if self.text.is_over:  # the engine was ahead when a stop string ended the answer
            return []
        pieces = self.text.add(event)
        self.pieces += pieces
        if self.text.is_over and self.stream is not None:
            self.stream.cancel()
        return pieces

    def timings(self) -> dict[str, float | None]:
        """Return seconds from the request to its first step and to its first token, from there to the last, and for each.

        Those of later tokens are None if there was only one.
        """
        assert self.stream is not None
        timing = self.stream.timing
        first = timing.arrived if timing.first_token is None else timing.first_token
        decode_s, count = self.last - first, len(self.token_ids) - 1
        return {
            "queue_s": (timing.scheduled or timing.arrived) - timing.arrived,
            "prefill_s": first - timing.arrived,
            "decode_s": decode_s,
            "token_s": decode_s / count if count > 0 else None,
            "tokens_per_s": count / decode_s if count > 0 and decode_s > 0 else None,
        }

    def as_json(self, tokenizer: Tokenizer, params: SamplingParams) -> dict[str, Any]:
        """Return the answer as JSON values, with the log probabilities that were asked for."""
        body: dict[str, Any] = {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": self.token_ids,
            "text": "".join(p.text for p in self.pieces),
            "finish_reason": self.pieces[-1].finish_reason,
        }
        if params.logprobs is not None:
            body["logprobs"] = [_scores(p.logprobs, tokenizer) for p in self.pieces if p.logprobs is not None]
        if params.prompt_logprobs is not None:
            body["prompt_logprobs"] = [None, *(_scores(s, tokenizer) for s in self.pieces[0].prompt_logprobs)]
        return body


def answer_all(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    num_choices: int,
    stop: Sequence[str],
    *,
    show: bool,
) -> list[Answer]:
    """Compute ``num_choices`` answers to each prompt, together. ``show`` prints them: one as it comes, several in order.

    Raises:
        RequestError: a prompt, or what is asked of it, is not valid.
        LoadmasterError: the engine failed.
    """
    options = TextOptions(tuple(stop))
    choices = [(i, j, one) for i in range(len(prompts)) for j, one in enumerate(params_of_choices(params, num_choices))]
    answers = [Answer(i, j, prompts[i], AnswerText(tokenizer, params, options)) for i, j, _ in choices]
    events: queue.SimpleQueue[tuple[Answer, Event, float]] = queue.SimpleQueue()

    def put(answer: Answer, event: Event) -> None:
        events.put((answer, event, time.monotonic()))

    try:
        for answer, (_, _, one) in zip(answers, choices, strict=True):
            answer.stream = engine.submit(answer.prompt_token_ids, one, partial(put, answer))
        num_running, num_printed = len(answers), 0
        while num_running:
            answer, event, now = events.get()
            pieces = answer.add(event)
            if pieces:
                answer.last = now
                num_running -= answer.text.is_over
            if show and len(answers) == 1:
                _print(pieces, tokenizer)
            while show and len(answers) > 1 and num_printed < len(answers) and answers[num_printed].text.is_over:
                _print_whole(answers[num_printed], len(prompts), num_choices, tokenizer)
                num_printed += 1
    finally:
        for answer in answers:
            if answer.stream is not None:
                answer.stream.cancel()
    if show and len(answers) == 1:
        print()
    return answers


def statistics_object(statistics: Statistics, block_size: int) -> dict[str, Any]:
    """Return what the engine has done as JSON values: each rank's time and its shares, the KV cache, counts, and how many
    drafts were right.
    """
    stages = []
    for usage in statistics.stages:
        seconds = {"busy": usage.busy_s, "input": usage.input_s, "engine": usage.engine_s}
        total_s = sum(seconds.values())
        shares = {f"{name}_share": s / total_s if total_s else 0.0 for name, s in seconds.items()}
        times = {f"{name}_s": s for name, s in seconds.items()}
        counts = {"num_batches": usage.num_batches, "num_tokens": usage.num_tokens}
        where = {"rank": usage.rank, "stage": usage.stage}
        stages.append(where | times | shares | counts)
    counters = statistics.counters
    return {
        "stages": stages,
        "kv_cache": {
            "block_size": block_size,
            "num_pages": statistics.num_pages,
            "num_tokens": statistics.num_pages * block_size,
            "most_used_pages": statistics.most_used_pages,
        },
        "prompt_tokens": counters.prompt_tokens,
        "cached_tokens": counters.cached_tokens,
        "output_tokens": counters.output_tokens,
        "preemptions": counters.preemptions,
        "drafted_tokens": counters.drafted_tokens,
        "accepted_tokens": counters.accepted_tokens,
        "acceptance_rate": counters.acceptance_rate,
        "tokens_per_step": counters.tokens_per_step,
    }


def _print(pieces: Sequence[Piece], tokenizer: Tokenizer) -> None:
    """Print text, or token ids if there is no tokenizer."""
    for piece in pieces:
        ids_only = not tokenizer.exists and piece.token_id is not None
        print(f"{piece.token_id} " if ids_only else piece.text, end="", flush=True)


def _print_whole(answer: Answer, num_prompts: int, num_choices: int, tokenizer: Tokenizer) -> None:
    which = f", answer {answer.index + 1} of {num_choices}" if num_choices > 1 else ""
    print(f"--- prompt {answer.prompt + 1} of {num_prompts}{which}")
    _print(answer.pieces, tokenizer)
    print(flush=True)


def _scores(position: PositionLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    def entry(token: TokenLogprob) -> dict[str, Any]:
        text = tokenizer.token_text(token.token_id) if tokenizer.exists else None
        return {"token_id": token.token_id, "text": text, "logprob": token.logprob, "rank": token.rank}

    return {**entry(position.chosen), "top": [entry(t) for t in position.top]}
