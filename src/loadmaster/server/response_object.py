"""The bodies of answers to ``/v1/responses``, whole and as events, in the OpenAI API's form."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from loadmaster.server.logprobs import chat_logprobs
from loadmaster.server.protocol.responses import ResponsesRequest
from loadmaster.server.responses import Choice


class ResponseObject:
    """Builds all parts of one answer, which is one message of text. ``text_of`` returns a token's text."""

    def __init__(self, body: ResponsesRequest, model: str, choice: Choice, text_of: Callable[[int], str]) -> None:
        self._body, self._choice, self._text_of = body, choice, text_of
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._num_top = body.top_logprobs or 0
        extra = body.model_extra or {}
        params = choice.params
        self._head: dict[str, Any] = {
            "id": f"resp_{body.request_id or uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": extra.get("metadata") or {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": self._num_top,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "user": extra.get("user"),
        }

    def whole(self) -> dict[str, Any]:
        """Return the complete answer."""
        is_cut = self._choice.finish_reason == "length"
        return {
            **self._head,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
            "output": [self._message()],
            "usage": self._usage(),
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield the events before the first text."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        item = {"id": self._item_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        yield {"type": "response.content_part.added", **self._place(), "part": self._part("", [])}

    def delta(self) -> dict[str, Any] | None:
        """Return the event for what the answer has gained since the last one, None if that is nothing."""
        choice = self._choice
        text = "".join(choice.texts[choice.num_sent_texts :])
        logprobs = self._logprobs(choice.num_sent_scored)
        choice.num_sent_texts, choice.num_sent_scored = len(choice.texts), len(choice.scored)
        if not text and not logprobs:
            return None
        return {"type": "response.output_text.delta", **self._place(), "delta": text, "logprobs": logprobs}

    def closing(self) -> Iterator[dict[str, Any]]:
        """Yield the events after the last text; the last one has the complete answer."""
        whole = self.whole()
        [message] = whole["output"]
        [part] = message["content"]
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done", **self._place(), **done}
        yield {"type": "response.content_part.done", **self._place(), "part": part}
        yield {"type": "response.output_item.done", "output_index": 0, "item": message}
        yield {"type": f"response.{whole['status']}", "response": whole}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _message(self) -> dict[str, Any]:
        status = "incomplete" if self._choice.finish_reason == "length" else "completed"
        part = self._part("".join(self._choice.texts), self._logprobs(0))
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": [part]}

    def _part(self, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, first: int) -> list[dict[str, Any]]:
        if not self._body.wants_logprobs:
            return []
        content: list[dict[str, Any]] = chat_logprobs(self._choice.scored[first:], self._num_top, self._text_of)[
            "content"
        ]
        return content

    def _usage(self) -> dict[str, Any]:
        num_prompt, num_answer = len(self._choice.prompt_token_ids), len(self._choice.token_ids)
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": self._choice.num_cached, "cache_write_tokens": 0},
            "output_tokens": num_answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_answer,
        }
