"""Log probabilities in answers: the OpenAI API's two forms, one for each route, and vLLM's ``prompt_logprobs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadmaster.engine import Tokenizer
from loadmaster.workers.batch import PositionLogprobs, TokenLogprob

LEAST: Final = -9999.0
"""What is written for lower values, since JSON has no infinity; as in vLLM."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of a prompt or an answer. ``logprobs`` is None for a prompt's first token: nothing predicts it."""

    token_id: int
    logprobs: PositionLogprobs | None


def token_texts(tokenizer: Tokenizer, *, as_ids: bool = False) -> Callable[[int], str]:
    """Return the function that gives a token's text. Without a tokenizer, or ``as_ids``, it is ``token_id:N``, as in vLLM."""
    return tokenizer.token_text if tokenizer.exists and not as_ids else lambda token_id: f"token_id:{token_id}"


def completion_logprobs(
    tokens: Sequence[Scored], num_top: int, text_of: Callable[[int], str], offset: int
) -> dict[str, Any]:
    """Return ``logprobs`` of a completion's choice.

    ``top_logprobs`` has the token itself too, so it can have one entry more than ``num_top``. ``offset`` is where the first
    token's text begins.
    """
    texts = [text_of(t.token_id) for t in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [None if t.logprobs is None else _finite(t.logprobs.chosen) for t in tokens],
        "top_logprobs": [
            None if t.logprobs is None else {text_of(c.token_id): _finite(c) for c in _candidates(t.logprobs, num_top)}
            for t in tokens
        ],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[Scored], num_top: int, text_of: Callable[[int], str]) -> dict[str, Any]:
    """Return ``logprobs`` of a chat completion's choice."""

    def entry(token: TokenLogprob) -> dict[str, Any]:
        text = text_of(token.token_id)
        return {"token": text, "logprob": _finite(token), "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(t.logprobs.chosen), "top_logprobs": [entry(top) for top in t.logprobs.top[:num_top]]}
            for t in tokens
            if t.logprobs is not None
        ]
    }


def prompt_logprobs(
    tokens: Sequence[Scored], num_top: int, text_of: Callable[[int], str]
) -> list[dict[str, dict[str, Any]] | None]:
    """Return vLLM's ``prompt_logprobs``: for each token of the prompt None, or its candidates by token id."""

    def entry(token: TokenLogprob) -> dict[str, Any]:
        return {"logprob": _finite(token), "rank": token.rank, "decoded_token": text_of(token.token_id)}

    return [
        None if t.logprobs is None else {str(c.token_id): entry(c) for c in _candidates(t.logprobs, num_top)}
        for t in tokens
    ]


def _candidates(position: PositionLogprobs, num_top: int) -> list[TokenLogprob]:
    """Return the token at a position, then the likeliest others."""
    chosen = position.chosen
    return [chosen, *(top for top in position.top[:num_top] if top.token_id != chosen.token_id)]


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST)
