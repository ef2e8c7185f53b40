"""What the parsers of tool calls have in common: content around calls, and calls written as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from loadmaster.server.parsers.arguments import ArgumentsWriter
from loadmaster.server.parsers.events import Arguments, CallBegun, Content
from loadmaster.server.parsers.reader import Program, Reader

Properties = Mapping[str, Any]
"""The JSON schemas of a function's arguments, by name."""


class CallParser(Reader):
    """Base of the parsers of tool calls. ``tools`` has the properties of each function that may be called.

    White space before tool calls is dropped, and text after the first. A call that cannot be parsed becomes content, unless
    it was reported before it broke off: then its arguments are what the model wrote.
    """

    markers: ClassVar[tuple[str, ...]] = ()
    """The texts that a tokenizer must not leave out, in case they are special tokens."""

    def __init__(self, tools: Mapping[str, Properties] | None = None) -> None:
        super().__init__()
        self._tools = tools or {}
        self._num_calls = 0
        self._space: list[str] = []  # it is content unless a call follows

    def _content(self, text: str, *, is_malformed: bool = False) -> None:
        """Report content; after the first call, only malformed calls. vLLM drops other text there, too."""
        if self._num_calls and not is_malformed:
            return
        body = text.rstrip()
        if body:
            self._events.append(Content("".join(self._space) + body))
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _end_content(self) -> None:
        """Report the last white space, if it is content. Every program ends with it."""
        if self._space and not self._num_calls:
            self._events.append(Content("".join(self._space)))
        self._space.clear()

    def _begin(self, name: str) -> None:
        """Report that a call begins."""
        self._space.clear()
        self._events.append(CallBegun(self._num_calls, name))
        self._num_calls += 1

    def _arguments(self, text: str) -> None:
        """Report a part of the last call's arguments."""
        if text:
            self._events.append(Arguments(self._num_calls - 1, text))

    def _writer(self, name: str) -> ArgumentsWriter:
        """Return a writer for the arguments of a call of ``name``, which has begun."""
        return ArgumentsWriter(self._tools.get(name, {}), self._arguments)

    def _text_before(self, marker: str) -> Program[bool]:
        """Report the text before ``marker`` as content. Return False if the text ends without it."""
        while True:
            text, found = yield from self._take(marker)
            self._content(text)
            if found is not None:
                return True
            if not text:
                return False

    def _call_as_json(self, before: str = "") -> Program[bool]:
        """Read ``{"name": …, "arguments": …}`` and report it. Other members are skipped; "parameters" is "arguments".

        Return whether it was complete. If it was not reported, it is content, with ``before``, the marker before it.
        """
        self._consumed = [before]
        num_before = self._num_calls
        is_complete = yield from self._members()
        if self._consumed is not None and self._num_calls == num_before:
            self._content("".join(self._consumed), is_malformed=True)
        self._consumed = None
        return is_complete

    def _members(self) -> Program[bool]:
        name: str | None = None
        early: str | None = None  # arguments that came before the name
        begun = False
        opener = "{"
        while True:
            if (yield from self._skip_space()) != opener:
                return False
            self._advance(self._at + 1)
            if (yield from self._skip_space()) != '"':
                return False
            key = yield from self._whole()
            if (yield from self._skip_space()) != ":":
                return False
            self._advance(self._at + 1)
            first = yield from self._skip_space()
            if key == "name" and not begun:
                name = yield from self._whole()
                if not isinstance(name, str) or not name:
                    return False
                if early is not None:
                    self._report(name, early)
                    begun = True
            elif key in ("arguments", "parameters") and not begun and early is None:
                if name is None or first == '"':
                    value = yield from self._whole()
                    early = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    if value is None:
                        return False
                    if name is not None:
                        self._report(name, early)
                        begun = True
                else:
                    self._report(name, "")
                    begun = True
                    if not (yield from self._json(self._arguments)):
                        return False
            elif not (yield from self._json(_drop)):
                return False
            if (yield from self._skip_space()) == "}":
                self._advance(self._at + 1)
                return begun
            opener = ","

    def _report(self, name: str, arguments: str) -> None:
        self._consumed = None
        self._begin(name)
        self._arguments(arguments)

    def _whole(self) -> Program[Any]:
        """Read a JSON value and return it; None if it is malformed."""
        parts: list[str] = []
        if not (yield from self._json(parts.append)):
            return None
        try:
            return json.loads("".join(parts))
        except (ValueError, RecursionError):
            return None


def _drop(_: str) -> None:
    """Drop a part of a value that is not needed."""
