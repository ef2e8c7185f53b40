"""The message of a chat's answer: content, reasoning and tool calls, whole or in deltas, in the OpenAI API's form."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loadmaster.server.parsers import Arguments, CallBegun, Content, Event, Parsed, Parser, Reasoning

ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class MessageOptions:
    """What of an answer is reported. ``one_call``: the first call only. ``short_ids``: Mistral's, 9 letters and digits.

    ``calls_are_reason``: calls are why the answer ended. In the OpenAI API they are not if the request named the function.
    """

    reasoning: bool = True
    one_call: bool = False
    short_ids: bool = False
    calls_are_reason: bool = True


class Message:
    """A message, so far. Its text passes through ``parser``."""

    def __init__(self, parser: Parser, options: MessageOptions) -> None:
        self._parser, self._options = parser, options
        self._events: list[Event] = []
        self._num_sent = 0
        self._ids: list[str] = []

    def begin_with(self, text: str) -> None:
        """Begin with a text that is content, and is not parsed."""
        self._events.append(Content(text))

    def add(self, text: str) -> None:
        """Add text of the answer."""
        self._keep(self._parser.add(text))

    def finish(self) -> None:
        """End the answer."""
        self._keep(self._parser.finish())

    @property
    def has_news(self) -> bool:
        """Whether there is something that `delta` has not returned."""
        return len(self._events) > self._num_sent

    @property
    def is_reasoning(self) -> bool:
        """Whether there is reasoning, and nothing after it yet."""
        return bool(self._events) and isinstance(self._events[-1], Reasoning)

    @property
    def ends_with_calls(self) -> bool:
        """Whether ``finish_reason`` is tool_calls if the answer is complete."""
        return bool(self._ids) and self._options.calls_are_reason

    def delta(self) -> dict[str, Any]:
        """Return what is new since the last delta."""
        events = self._events[self._num_sent :]
        self._num_sent = len(self._events)
        calls: dict[int, dict[str, Any]] = {}
        texts: dict[str, str] = {}
        for event in events:
            match event:
                case Content(text):
                    texts["content"] = texts.get("content", "") + text
                case Reasoning(text):
                    texts["reasoning"] = texts.get("reasoning", "") + text
                case CallBegun(index, name):
                    function = {"name": name, "arguments": ""}
                    calls[index] = {"index": index, "id": self._ids[index], "type": "function", "function": function}
                case Arguments(index, text):
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += text
        return {**texts, **({"tool_calls": list(calls.values())} if calls else {})}

    def whole(self) -> dict[str, Any]:
        """Return the message, without its role."""
        parsed = Parsed.of(self._events)
        is_only_text = not parsed.calls and not parsed.reasoning
        body: dict[str, Any] = {"content": parsed.content or ("" if is_only_text else None)}
        if parsed.reasoning:
            body["reasoning"] = parsed.reasoning
        if parsed.calls:
            body["tool_calls"] = [
                {"id": one_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for one_id, (name, arguments) in zip(self._ids, parsed.calls, strict=True)
            ]
        return body

    def _keep(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Reasoning) and not self._options.reasoning:
                continue
            if isinstance(event, CallBegun | Arguments) and event.index > 0 and self._options.one_call:
                continue
            if isinstance(event, CallBegun):
                self._ids.append(self._new_id())
            self._events.append(event)

    def _new_id(self) -> str:
        if self._options.short_ids:
            return "".join(secrets.choice(ALPHANUMERIC) for _ in range(9))
        return f"chatcmpl-tool-{uuid.uuid4().hex}"
