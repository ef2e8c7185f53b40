"""``<tool_call>{"name": …, "arguments": {…}}</tool_call>``: Hermes, Qwen2.5, Qwen3 (not Coder)."""

from __future__ import annotations

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

START, END = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    """vLLM's ``hermes``."""

    markers = (START, END)

    def _parse(self) -> Program[None]:
        while (yield from self._text_before(START)):
            num_before = self._num_calls
            yield from self._call_as_json(START)
            text, marker = yield from self._take_until(END)
            if self._num_calls == num_before:
                self._content(text + (marker or ""), is_malformed=True)
        self._end_content()
