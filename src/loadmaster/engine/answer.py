"""A request's answer as text: the engine's tokens, detokenised, up to the first stop string."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loadmaster.engine.engine import Engine
from loadmaster.engine.request import FinishReason, Output
from loadmaster.engine.tokenizer import Detokenizer, Tokenizer
from loadmaster.errors import RequestError
from loadmaster.workers.batch import PositionLogprobs
from loadmaster.workers.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: a token, and the text that is final after it, which may be empty.

    The last piece has a ``finish_reason``, no token, and the rest of the text. Text is held back while it may be part of
    an incomplete character or of a stop string. ``stop_reason`` is the stop string, or the token of ``stop_token_ids``, that
    ended the answer. ``logprobs`` are given if the request asks for them; then ``prompt_logprobs`` of the first piece has an
    entry for each token of the prompt but the first.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprobs: PositionLogprobs | None = None
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How an answer becomes text. Names and defaults are vLLM's.

    A stop string, or the token that ends an answer, is part of the text only with ``include_stop_str_in_output``. ``keep`` are
    special tokens that have text in any case.
    """

    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    keep: frozenset[int] = frozenset()


NO_OPTIONS: Final = TextOptions()


def params_of_choices(params: SamplingParams, num_choices: int) -> list[SamplingParams]:
    """Return the parameters of several answers to one prompt: the seed of each is one more than that of the last.

    The seed after the largest is the smallest.
    """
    if params.seed is None:
        return [params] * num_choices
    return [replace(params, seed=(params.seed + 2**63 + i) % 2**64 - 2**63) for i in range(num_choices)]


class StopStrings:
    """Finds stop strings in text that arrives in parts. Holds back text that may be the beginning of one.

    >>> stop = StopStrings(["END"])
    >>> stop.add("a lot E"), stop.add("lse"), stop.add(" EN"), stop.add("D."), stop.found
    ('a lot ', 'Else', ' ', '', 'END')

    ``found`` is the string that was found first in the text; of several that begin at the same place, the one given first.
    """

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        self._strings = tuple(s for s in strings if s)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Add text, and return the text that is certainly not part of a stop string."""
        if self.found or not self._strings:
            return "" if self.found else text
        text = self._held + text
        at, string = min(
            ((i, s) for s in self._strings if (i := text.find(s)) >= 0), key=lambda pair: pair[0], default=(-1, None)
        )
        if string is not None:
            self.found, self._held = string, ""
            return text[: at + len(string)] if self._include else text[:at]
        keep = max(
            (n for s in self._strings for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the text that was held back. Call it after the last `add`."""
        text, self._held = self._held, ""
        return text


class AnswerText:
    """Turns the outputs of one request into pieces, one for each token, and a last one.

    By default the token that ends an answer has no text. A stop string is left out, and ends the answer; none is looked for in
    the text of the first ``min_tokens`` tokens of ``params``. Without a tokenizer, pieces have no text.

    Raises:
        RequestError: stop strings were given and the model has no tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, options: TextOptions = NO_OPTIONS) -> None:
        if options.stop and not tokenizer.exists:
            raise RequestError(
                "stop strings need a tokenizer, and the model has none", hint="use stop_token_ids instead"
            )
        self._detokenizer = None
        if tokenizer.exists:
            self._detokenizer = Detokenizer(
                tokenizer, skip_special_tokens=options.skip_special_tokens, keep=options.keep
            )
        self._includes_end = options.include_stop_str_in_output
        self._strings = StopStrings(options.stop, include=self._includes_end)
        self._num_unchecked = params.min_tokens
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._prompt_logprobs: tuple[PositionLogprobs, ...] = ()
        self.is_over = False

    def add(self, output: Output) -> list[Piece]:
        """Return the pieces of the next output. Nothing may be added after the last piece."""
        pieces: list[Piece] = []
        reason = output.finish_reason
        stop_reason: int | str | None = None
        self._prompt_logprobs += output.prompt_logprobs
        for i, token in enumerate(output.token_ids):
            is_end = reason == "stop" and i == len(output.token_ids) - 1
            logprobs = output.logprobs[i] if output.logprobs else None
            text = "" if is_end and not self._includes_end else self._text(token)
            pieces.append(Piece(token, text, None, logprobs, self._prompt_logprobs))
            self._prompt_logprobs = ()
            if self._strings.found:
                break
            if is_end and token in self._stop_token_ids:
                stop_reason = token
        if self._strings.found or reason is not None:
            self.is_over = True
            rest = self._rest()  # may find a stop string, too
            if self._strings.found:
                reason, stop_reason = "stop", self._strings.found
            pieces.append(Piece(None, rest, reason, stop_reason=stop_reason))
        return pieces

    def _text(self, token: int) -> str:
        text = "" if self._detokenizer is None else self._detokenizer.add(token)
        if self._num_unchecked > 0:
            self._num_unchecked -= 1
            return text
        return self._strings.add(text)

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        return self._strings.add(self._detokenizer.finish()) + self._strings.finish()


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    stop: Sequence[str] = (),
) -> Generator[Piece, None, None]:
    """Return the answer to a prompt, one piece for each token. Closing the iterator cancels the request.

    Raises:
        RequestError: as `Engine.submit` raises it; or stop strings were given and the model has no tokenizer.
    """
    engine.check(prompt_token_ids, params)
    return _pieces(engine, prompt_token_ids, params, AnswerText(tokenizer, params, TextOptions(tuple(stop))))


def _pieces(
    engine: Engine, prompt_token_ids: Sequence[int], params: SamplingParams, text: AnswerText
) -> Generator[Piece, None, None]:
    stream = engine.submit(prompt_token_ids, params)
    try:
        for output in stream:
            yield from text.add(output)
            if text.is_over:
                return
    finally:
        stream.cancel()
