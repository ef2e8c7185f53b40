"""DeepSeek's special tokens around a name and arguments in JSON: V3 and R1, which write a code block, and V3.1."""

from __future__ import annotations

from typing import ClassVar

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeekV31Parser(CallParser):
    """vLLM's ``deepseek_v31``: each call is ``BEGIN name SEPARATOR arguments END``."""

    markers = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)
    has_code_block: ClassVar[bool] = False

    def _parse(self) -> Program[None]:
        while (yield from self._text_before(CALLS)):
            while True:
                text, marker = yield from self._take_until(CALL, CALLS_END)
                if marker != CALL:
                    self._content(text)
                    break
                yield from self._call()
        self._end_content()

    def _call(self) -> Program[None]:
        self._consumed = [CALL]
        name = yield from self._name()
        if name:
            self._consumed = None
            self._begin(name)
            yield from self._json(self._arguments)
        yield from self._take_until(CALL_END)
        if self._consumed is not None:
            self._content("".join(self._consumed), is_malformed=True)
            self._consumed = None

    def _name(self) -> Program[str]:
        """Read up to the arguments. Return the function's name; it is empty if the call is malformed."""
        name, marker = yield from self._take_until(SEPARATOR, CALL_END)
        if marker != SEPARATOR:
            return ""
        if self.has_code_block:
            name, marker = yield from self._take_until("```json", CALL_END)
        yield from self._skip_space()
        return name.strip() if marker not in (None, CALL_END) else ""


class DeepSeekV3Parser(DeepSeekV31Parser):
    """vLLM's ``deepseek_v3``: the type comes first, and the arguments are in a code block."""

    has_code_block = True
