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
    """Builds all parts of one answer: a message of text, after the model's reasoning. ``text_of`` returns a token's text.

    Log probabilities are given with the message, for all tokens of the answer.
    """

    def __init__(self, body: ResponsesRequest, model: str, choice: Choice, text_of: Callable[[int], str]) -> None:
        self._body, self._choice, self._text_of = body, choice, text_of
        self._ids = {"reasoning": f"rs_{uuid.uuid4().hex}", "message": f"msg_{uuid.uuid4().hex}"}
        self._begun: list[str] = []
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
            "text": {"format": body.format_values},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": self._num_top,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "user": extra.get("user"),
        }

    def whole(self) -> dict[str, Any]:
        """Return the complete answer."""
        return {
            **self._head,
            "status": self._status,
            "incomplete_details": {"reason": "max_output_tokens"} if self._is_cut else None,
            "completed_at": None if self._is_cut else int(time.time()),
            "output": self._output(),
            "usage": self._usage(),
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yield the events before the first item."""
        begun = {**self._head, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Yield the events for what the answer has gained since the last ones."""
        choice = self._choice
        if choice.message is None:
            new = {"content": "".join(choice.texts[choice.num_sent_texts :])}
            choice.num_sent_texts = len(choice.texts)
        else:
            new = choice.message.delta()
        if reasoning := new.get("reasoning"):
            yield from self._begin("reasoning")
            yield {"type": "response.reasoning_text.delta", **self._place("reasoning"), "delta": reasoning}
        text = new.get("content", "")
        logprobs = self._logprobs(choice.num_sent_scored)
        if text or (logprobs and "message" in self._begun):
            yield from self._begin("message")
            choice.num_sent_scored = len(choice.scored)
            delta = {"delta": text, "logprobs": logprobs}
            yield {"type": "response.output_text.delta", **self._place("message"), **delta}

    def closing(self) -> Iterator[dict[str, Any]]:
        """Yield the events after the last text; the last one has the complete answer."""
        whole = self.whole()
        for item in whole["output"]:
            yield from self._begin(item["type"])
        yield from self._end(whole["output"][-1])
        yield {"type": f"response.{whole['status']}", "response": whole}

    @property
    def _is_cut(self) -> bool:
        return self._choice.finish_reason == "length"

    @property
    def _status(self) -> str:
        return "incomplete" if self._is_cut else "completed"

    def _begin(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the events that begin an item, after those that end the one before; none if it has begun."""
        if kind in self._begun:
            return
        if self._begun:
            yield from self._end(self._output()[0])
        self._begun.append(kind)
        item, part = self._item(kind, "", "in_progress", [])
        place = self._place(kind)
        yield {
            "type": "response.output_item.added",
            "output_index": place["output_index"],
            "item": {**item, "content": []},
        }
        yield {"type": "response.content_part.added", **place, "part": part}

    def _end(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = self._place(item["type"])
        [part] = item["content"]
        if item["type"] == "reasoning":
            yield {"type": "response.reasoning_text.done", **place, "text": part["text"]}
        else:
            yield {
                "type": "response.output_text.done",
                **place,
                "text": part["text"],
                "logprobs": part["logprobs"],
            }
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": place["output_index"], "item": item}

    def _place(self, kind: str) -> dict[str, Any]:
        return {"item_id": self._ids[kind], "output_index": self._begun.index(kind), "content_index": 0}

    def _output(self) -> list[dict[str, Any]]:
        """Return the items so far: reasoning if there is any, and the message unless there is only reasoning."""
        message = self._choice.message
        texts = {"content": "".join(self._choice.texts)} if message is None else message.whole()
        reasoning, content = texts.get("reasoning") or "", texts["content"] or ""
        items = []
        if reasoning:
            items.append(self._item("reasoning", reasoning, "completed" if content else self._status, [])[0])
        if content or not reasoning:
            items.append(self._item("message", content, self._status, self._logprobs(0))[0])
        return items

    def _item(
        self, kind: str, text: str, status: str, logprobs: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return an item and its only part."""
        part: dict[str, Any]
        if kind == "reasoning":
            part = {"type": "reasoning_text", "text": text}
            extra: dict[str, Any] = {"summary": []}
        else:
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
            extra = {"role": "assistant"}
        return {"id": self._ids[kind], "type": kind, "status": status, **extra, "content": [part]}, part

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
            "output_tokens_details": {"reasoning_tokens": self._choice.num_reasoning_tokens},
            "total_tokens": num_prompt + num_answer,
        }
