"""``<minimax:tool_call><invoke name="…"><parameter name="k">v</parameter>…</invoke></minimax:tool_call>``: MiniMax-M2."""

from __future__ import annotations

from loadmaster.server.parsers.arguments import ArgumentsWriter
from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

START, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, INVOKE_END = "<invoke name=", "</invoke>"
PARAMETER, PARAMETER_END = "<parameter name=", "</parameter>"
QUOTES = "\"'"


class MiniMaxM2Parser(CallParser):
    """vLLM's ``minimax_m2``. Names may be in double quotes, single quotes or none."""

    markers = (START, END)

    def _parse(self) -> Program[None]:
        while (yield from self._text_before(START)):
            while True:
                before, marker = yield from self._take_until(INVOKE, END)
                if marker != INVOKE:
                    if before.strip():
                        self._content(f"{START}{before}{marker or ''}", is_malformed=True)
                    break
                yield from self._call()
        self._end_content()

    def _call(self) -> Program[None]:
        before, marker = yield from self._take_until(">")
        if marker is None or not (name := _unquoted(before)):
            self._content(f"{INVOKE}{before}{marker or ''}", is_malformed=True)
            return
        self._begin(name)
        writer = self._writer(name)
        _, marker = yield from self._take_until(PARAMETER, INVOKE_END)
        while marker == PARAMETER:
            marker = yield from self._parameter(writer)
        if marker is not None:
            writer.close()

    def _parameter(self, writer: ArgumentsWriter) -> Program[str | None]:
        """Read an argument; return the marker after it and its closing tag, None if the text ends."""
        name, marker = yield from self._take_until(">")
        if marker is None:
            return None
        writer.begin(_unquoted(name))
        while True:
            text, marker = yield from self._take(PARAMETER_END, PARAMETER, INVOKE_END)
            writer.add(text)
            if marker is not None:
                writer.end()
                break
            if not text:
                return None
        if marker == PARAMETER_END:
            _, marker = yield from self._take_until(PARAMETER, INVOKE_END)
        return marker


def _unquoted(text: str) -> str:
    """Return a name without its quotes.

    >>> _unquoted('"f"'), _unquoted("f ")
    ('f', 'f')
    """
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES else text
