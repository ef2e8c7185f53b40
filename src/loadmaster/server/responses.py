"""The bodies of answers, whole and streamed, in the OpenAI API's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadmaster.engine import Piece
from loadmaster.server.logprobs import Scored, chat_logprobs, completion_logprobs, prompt_logprobs
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
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_scored: list[Scored] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    num_sent_texts: int = 0
    num_sent_tokens: int = 0
    num_sent_scored: int = 0
    offset: int = 0

    def add(self, piece: Piece) -> None:
        """Add a piece of the answer; before the first, the prompt if it is to be repeated."""
        if piece.prompt_logprobs or (self.params.prompt_logprobs is not None and not self.prompt_scored):
            logprobs = (None, *piece.prompt_logprobs)
            self.prompt_scored = [Scored(*pair) for pair in zip(self.prompt_token_ids, logprobs, strict=True)]
        if self.echo is not None:
            self.texts.append(self.echo)
            self.scored += self.prompt_scored if self.params.logprobs is not None else ()
            self.echo = None
        self.finish_reason = piece.finish_reason
        if self.only_echo:
            return
        if piece.text:
            self.texts.append(piece.text)
        if piece.token_id is not None:
            self.token_ids.append(piece.token_id)
            if piece.logprobs is not None:
                self.scored.append(Scored(piece.token_id, piece.logprobs))

    @property
    def has_news(self) -> bool:
        """Whether there is text that was not sent, or the end."""
        return len(self.texts) > self.num_sent_texts or self.finish_reason is not None


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Return the numbers of tokens of the prompts and answers."""
    prompt = sum(len(c.prompt_token_ids) for c in choices if c.begins_prompt)
    answer = sum(len(c.token_ids) for c in choices)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


@dataclass(frozen=True, slots=True)
class Contents:
    """What an answer contains besides text: token ids; log probabilities with this many likeliest tokens, None for none."""

    token_ids: bool = False
    num_top: int | None = None
    num_prompt_top: int | None = None
    usage_in_stream: bool = False


class Envelope:
    """Builds all parts of one answer: they share id, time, model and kind. ``text_of`` returns a token's text."""

    def __init__(
        self, model: str, contents: Contents, text_of: Callable[[int], str], *, is_chat: bool, is_stream: bool
    ) -> None:
        self._is_chat, self._contents, self._text_of = is_chat, contents, text_of
        kind = ("chat.completion.chunk" if is_stream else "chat.completion") if is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return a complete answer."""
        body = {**self._head, "choices": [self._choice(c) for c in choices], "usage": usage(choices)}
        if self._is_chat and self._contents.num_prompt_top is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(choices[0])
        return body

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of a streamed choice, or None if it has none."""
        if not self._is_chat:
            return None
        return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}, None)

    def part(self, choice: Choice) -> dict[str, Any]:
        """Return what a streamed choice has gained since its last part."""
        text = "".join(choice.texts[choice.num_sent_texts :])
        body: dict[str, Any] = {"index": choice.index}
        if not self._is_chat:
            body["text"] = text
        else:
            body["delta"] = {"content": text} if text else {}
        if self._contents.token_ids:
            body["token_ids"] = choice.token_ids[choice.num_sent_tokens :]
        body["logprobs"] = self._logprobs(choice, choice.num_sent_scored)
        choice.num_sent_texts = len(choice.texts)
        choice.num_sent_tokens = len(choice.token_ids)
        choice.num_sent_scored = len(choice.scored)
        return self._chunk(body, choice.finish_reason)

    def closing(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        """Return the last chunk of a streamed answer, its usage; None unless it was requested."""
        if not self._contents.usage_in_stream:
            return None
        return {**self._head, "choices": [], "usage": usage(choices)}

    def _choice(self, c: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"index": c.index}
        if self._is_chat:
            body["message"] = {"role": "assistant", "content": "".join(c.texts)}
        else:
            body["text"] = "".join(c.texts)
        if self._contents.token_ids:
            body["prompt_token_ids"] = list(c.prompt_token_ids)
            body["token_ids"] = c.token_ids
        if not self._is_chat and self._contents.num_prompt_top is not None:
            body["prompt_logprobs"] = self._prompt_logprobs(c)
        return {**body, "logprobs": self._logprobs(c, 0), "finish_reason": c.finish_reason}

    def _chunk(self, choice: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        body = {**self._head, "choices": [{**choice, "finish_reason": finish_reason}]}
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
