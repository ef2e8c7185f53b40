"""The bodies of answers, whole and streamed, in the OpenAI API's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Choice:
    """The answer to one prompt, so far."""

    index: int
    prompt_token_ids: Sequence[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Return the numbers of tokens of the prompts and answers."""
    prompt = sum(len(c.prompt_token_ids) for c in choices)
    answer = sum(len(c.token_ids) for c in choices)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Envelope:
    """Builds all parts of one answer: they share id, time, model and kind. ``token_ids``: include token ids."""

    def __init__(self, model: str, *, is_chat: bool, is_stream: bool, token_ids: bool, include_usage: bool) -> None:
        self._is_chat, self._token_ids, self._include_usage = is_chat, token_ids, include_usage
        kind = ("chat.completion.chunk" if is_stream else "chat.completion") if is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return a complete answer."""
        return {**self._head, "choices": [self._choice(c) for c in choices], "usage": usage(choices)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of a streamed choice, or None if it has none."""
        if not self._is_chat:
            return None
        return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}}, None)

    def part(self, index: int, text: str, token_ids: Sequence[int], finish_reason: str | None) -> dict[str, Any]:
        """Return a part of a streamed answer."""
        body: dict[str, Any] = {"index": index}
        if not self._is_chat:
            body["text"] = text
        else:
            body["delta"] = {"content": text} if text else {}
        if self._token_ids:
            body["token_ids"] = list(token_ids)
        return self._chunk(body, finish_reason)

    def closing(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        """Return the last chunk of a streamed answer, its usage; None unless it was requested."""
        return {**self._head, "choices": [], "usage": usage(choices)} if self._include_usage else None

    def _choice(self, c: Choice) -> dict[str, Any]:
        body: dict[str, Any] = {"index": c.index}
        if self._is_chat:
            body["message"] = {"role": "assistant", "content": c.text}
        else:
            body["text"] = c.text
        if self._token_ids:
            body["prompt_token_ids"] = list(c.prompt_token_ids)
            body["token_ids"] = c.token_ids
        return {**body, "logprobs": None, "finish_reason": c.finish_reason}

    def _chunk(self, choice: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        body = {**self._head, "choices": [{**choice, "logprobs": None, "finish_reason": finish_reason}]}
        return {**body, "usage": None} if self._include_usage else body
