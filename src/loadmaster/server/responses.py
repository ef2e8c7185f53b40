"""The bodies of answers, whole and streamed, in the OpenAI API's form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loadmaster.engine import Piece
from loadmaster.server.logprobs import Scored, chat_logprobs, completion_logprobs, prompt_logprobs
from loadmaster.server.message import Message
from loadmaster.workers import SamplingParams


@dataclass(slots=True)
class Choice:
    """One answer to one prompt, so far. ``begins_prompt``: it is the prompt's first, so usage counts the prompt.

    ``echo`` is the prompt's text, if the answer begins with it. ``only_echo``: there is nothing after it.
    """

    index: int
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    begins_prompt: bool = True
    echo: str | None = None
    only_echo: bool = False
    message: Message | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    sum_logprobs: float = 0.0
    num_cached: int = 0
    num_reasoning_tokens: int = 0
    prompt_scored: list[Scored] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    num_sent_texts: int = 0
    num_sent_tokens: int = 0
    num_sent_scored: int = 0
    is_begun: bool = False
    offset: int = 0

    def add(self, piece: Piece) -> None:
        """Add a piece of the answer; before the first, the prompt if it is to be repeated."""
        if piece.prompt_logprobs or (self.params.prompt_logprobs is not None and not self.prompt_scored):
            logprobs = (None, *piece.prompt_logprobs)
            self.prompt_scored = [Scored(*pair) for pair in zip(self.prompt_token_ids, logprobs, strict=True)]
        if self.echo is not None:
            if self.message is None:
                self.texts.append(self.echo)
            else:
                self.message.begin_with(self.echo)
            self.scored += self.prompt_scored if self.params.logprobs is not None else ()
            self.echo = None
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason
        if self.only_echo:
            return
        if self.message is not None:
            self._add_to(self.message, piece)
        elif piece.text:
            self.texts.append(piece.text)
        if piece.token_id is not None:
            self.token_ids.append(piece.token_id)
            if self.message is not None and self.message.is_reasoning:
                self.num_reasoning_tokens = len(self.token_ids)
            if piece.logprobs is not None:
                self.scored.append(Scored(piece.token_id, piece.logprobs))
                self.sum_logprobs += piece.logprobs.chosen.logprob

    @property
    def has_news(self) -> bool:
        """Whether there is text that was not sent, or the end."""
        if self.finish_reason is not None:
            return True
        return len(self.texts) > self.num_sent_texts if self.message is None else self.message.has_news

    @property
    def written(self) -> str:
        """The answer so far; its message as JSON if it was parsed."""
        return "".join(self.texts) if self.message is None else json.dumps(self.message.whole(), ensure_ascii=False)

    def _add_to(self, message: Message, piece: Piece) -> None:
        if piece.text:
            message.add(piece.text)
        if piece.finish_reason is not None:
            message.finish()
            if piece.finish_reason == "stop" and message.ends_with_calls:
                self.finish_reason = "tool_calls"

    def is_due(self, interval: int) -> bool:
        """Whether the next part of a stream is to be sent: the first, the last, or after ``interval`` tokens."""
        num_tokens = len(self.token_ids) - self.num_sent_tokens
        return not self.is_begun or num_tokens >= interval or self.finish_reason is not None

    @property
    def mean_logprob(self) -> float:
        """The log probability of the answer's tokens, divided by their number; 0 without tokens."""
        return self.sum_logprobs / max(1, len(self.token_ids))


def likeliest(choices: Sequence[Choice], num_candidates: int, num_choices: int) -> list[Choice]:
    """Return the ``num_choices`` best of each ``num_candidates`` answers, numbered again, the best first.

    The best has the highest log probability per token: OpenAI's definition of ``best_of``.
    """
    if num_candidates == num_choices:
        return list(choices)
    kept: list[Choice] = []
    for first in range(0, len(choices), num_candidates):
        candidates = choices[first : first + num_candidates]
        kept += sorted(candidates, key=lambda c: -c.mean_logprob)[:num_choices]
    return [replace(choice, index=i) for i, choice in enumerate(kept)]


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the numbers of tokens of the prompts and answers, and how many of the prompts' were in the KV cache."""
    prompt = sum(len(c.prompt_token_ids) for c in choices if c.begins_prompt)
    answer = sum(len(c.token_ids) for c in choices)
    cached = sum(c.num_cached for c in choices if c.begins_prompt)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass(frozen=True, slots=True)
class Contents:
    """What an answer contains besides text: token ids; log probabilities with this many likeliest tokens, None for none.

    ``usage_in_stream``: a last chunk has the usage; ``usage_in_chunks``: each chunk has that of its choice so far. ``role`` is
    that of a chat's message, None for completions. ``request_id`` becomes a part of the answer's id.
    """

    token_ids: bool = False
    num_top: int | None = None
    num_prompt_top: int | None = None
    usage_in_stream: bool = False
    usage_in_chunks: bool = False
    role: str | None = None
    request_id: str | None = None


class Envelope:
    """Builds all parts of one answer: they share id, time, model and kind. ``text_of`` returns a token's text."""

    def __init__(self, model: str, contents: Contents, text_of: Callable[[int], str], *, is_stream: bool) -> None:
        is_chat = contents.role is not None
        self._is_chat, self._contents, self._text_of = is_chat, contents, text_of
        kind = ("chat.completion.chunk" if is_stream else "chat.completion") if is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{contents.request_id or uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return a complete answer."""
        body = {**self._head, "choices": [self._choice(c) for c in choices], "usage": usage}
        if self._is_chat and self._contents.token_ids:
            body["prompt_token_ids"] = list(choices[0].prompt_token_ids)
        if self._is_chat and self._contents.num_prompt_top is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(choices[0])
        return body

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """Return the first chunk of a streamed choice, or None if it has none."""
        if not self._is_chat:
            return None
        delta = {"role": self._contents.role, "content": ""}
        chunk = self._chunk(choice, {"index": choice.index, "delta": delta, "logprobs": None})
        return {**chunk, "prompt_token_ids": list(choice.prompt_token_ids)} if self._contents.token_ids else chunk

    def part(self, choice: Choice) -> dict[str, Any]:
        """Return what a streamed choice has gained since its last part."""
        text = "".join(choice.texts[choice.num_sent_texts :])
        body: dict[str, Any] = {"index": choice.index}
        if not self._is_chat:
            body["text"] = text
        else:
            body["delta"] = {"content": text} if text else {}
            if choice.message is not None:
                body["delta"] = choice.message.delta()
        if self._contents.token_ids:
            if not self._is_chat and not choice.is_begun:
                body["prompt_token_ids"] = list(choice.prompt_token_ids)
            body["token_ids"] = choice.token_ids[choice.num_sent_tokens :]
        body["logprobs"] = self._logprobs(choice, choice.num_sent_scored)
        choice.num_sent_texts = len(choice.texts)
        choice.num_sent_tokens = len(choice.token_ids)
        choice.num_sent_scored = len(choice.scored)
        choice.is_begun = True
        return self._chunk(choice, body)

    def closing(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        """Return the last chunk of a streamed answer, its usage; None unless it was requested."""
        if not self._contents.usage_in_stream:
            return None
        return {**self._head, "choices": [], "usage": usage(choices)}

    def _choice(self, c: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"index": c.index}
        if self._is_chat:
            content = {"content": "".join(c.texts)} if c.message is None else c.message.whole()
            body["message"] = {"role": self._contents.role, **content}
        else:
            body["text"] = "".join(c.texts)
        if self._contents.token_ids:
            if not self._is_chat:
                body["prompt_token_ids"] = list(c.prompt_token_ids)
            body["token_ids"] = c.token_ids
        if not self._is_chat and self._contents.num_prompt_top is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(c)
        return {**body, "logprobs": self._logprobs(c, 0), **_reasons(c)}

    def _chunk(self, choice: Choice, part: dict[str, Any]) -> dict[str, Any]:
        body = {**self._head, "choices": [{**part, **_reasons(choice)}]}
        if self._contents.usage_in_chunks:
            return {**body, "usage": usage([replace(choice, begins_prompt=True)])}
        return {**body, "usage": None} if self._contents.usage_in_stream else body

    def _logprobs(self, choice: Choice, first: int) -> dict[str, Any] | None:
        """Return the log probabilities of a choice's tokens from number ``first``, or None if they were not asked for."""
        num_top, tokens = self._contents.num_top, choice.scored[first:]
        if num_top is None:
            return None
        if self._is_chat:
            return chat_logprobs(tokens, num_top, self._text_of)
        written = completion_logprobs(tokens, num_top, self._text_of, choice.offset)
        choice.offset += sum(map(len, written["tokens"]))
        return written

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, dict[str, Any]] | None]:
        assert self._contents.num_prompt_top is not None
        return prompt_logprobs(choice.prompt_scored, self._contents.num_prompt_top, self._text_of)


def _reasons(choice: Choice) -> dict[str, Any]:
    """Return why a choice has ended: OpenAI's reason, and vLLM's."""
    return {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
