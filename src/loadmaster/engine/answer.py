"""A request's answer as text: the engine's tokens, detokenised, up to the first stop string."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from loadmaster.engine.engine import Engine
from loadmaster.engine.tokenizer import Detokenizer, Tokenizer
from loadmaster.errors import RequestError
from loadmaster.workers.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer: a token, and the text that is final after it, which may be empty.

    The last piece has a ``finish_reason``, no token, and the rest of the text. Text is held back while it may be part of
    an incomplete character or of a stop string.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None


class StopStrings:
    """Finds stop strings in text that arrives in parts. Holds back text that may be the beginning of one.

    >>> stop = StopStrings(["END"])
    >>> stop.add("a lot E"), stop.add("lse"), stop.add(" EN"), stop.add("D."), stop.found
    ('a lot ', 'Else', ' ', '', True)
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(s for s in strings if s)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add text, and return the text that is certainly not part of a stop string."""
        if self.found or not self._strings:
            return "" if self.found else text
        text = self._held + text
        at = min((i for s in self._strings if (i := text.find(s)) >= 0), default=-1)
        if at >= 0:
            self.found, self._held = True, ""
            return text[:at]
        keep = max(
            (n for s in self._strings for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the text that was held back. Call it after the last `add`."""
        text, self._held = self._held, ""
        return text


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    stop: Sequence[str] = (),
) -> Generator[Piece, None, None]:
    """Return the answer to a prompt, one piece for each token. Closing the iterator cancels the request.

    The token that ends an answer (end of text, ``stop_token_ids``) is returned, but without its text. A stop string is
    left out. If the model has no tokenizer, pieces have no text.

    Raises:
        RequestError: as `Engine.generate` raises it; or stop strings were given and the model has no tokenizer.
    """
    if stop and not tokenizer.exists:
        raise RequestError("stop strings need a tokenizer, and the model has none", hint="use stop_token_ids instead")
    tokens = engine.generate(prompt_token_ids, params)
    return _pieces(tokens, engine.stop_token_ids(params), Detokenizer(tokenizer) if tokenizer.exists else None, stop)


def _pieces(
    tokens: Generator[int, None, None], ends: frozenset[int], detokenizer: Detokenizer | None, stop: Sequence[str]
) -> Generator[Piece, None, None]:
    strings = StopStrings(stop)
    reason: FinishReason = "length"
    with closing(tokens):
        for token in tokens:
            if token in ends:
                reason = "stop"
                yield Piece(token, "")
                break
            yield Piece(token, strings.add(detokenizer.add(token)) if detokenizer else "")
            if strings.found:
                break
    rest = strings.add(detokenizer.finish()) + strings.finish() if detokenizer else ""
    yield Piece(None, rest, "stop" if strings.found else reason)
