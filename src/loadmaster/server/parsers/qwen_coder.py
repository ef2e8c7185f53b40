"""``<tool_call><function=name><parameter=k>v</parameter>…</function></tool_call>``: Qwen3-Coder."""

from __future__ import annotations

from loadmaster.server.parsers.arguments import ArgumentsWriter
from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


class QwenCoderParser(CallParser):
    """vLLM's ``qwen3_coder`` and ``qwen3_xml``. One line break at each end of a value is markup.

    Closing tags may be missing, as models leave them out.
    """

    markers = (START, END)

    def _parse(self) -> Program[None]:
        while True:
            text, marker = yield from self._take(START, FUNCTION)
            self._content(text)
            if marker == START:
                before, marker = yield from self._take_until(FUNCTION, END)
                if marker != FUNCTION:
                    self._content(f"{START}{before}{marker or ''}", is_malformed=True)
            elif marker is None and not text:
                break
            if marker == FUNCTION:
                yield from self._call()
        self._end_content()

    def _call(self) -> Program[None]:
        before, marker = yield from self._take_until(">", FUNCTION_END)
        if marker is None or not (name := before.strip()):
            self._content(f"{FUNCTION}{before}{marker or ''}", is_malformed=True)
            return
        self._begin(name)
        writer = self._writer(name)
        while marker in (">", PARAMETER_END):
            _, marker = yield from self._take_until(PARAMETER, FUNCTION_END, END)
            while marker == PARAMETER:
                marker = yield from self._parameter(writer)
        if marker is None:
            return
        writer.close()
        if marker == FUNCTION_END and (yield from self._skip_space()) == "<":
            yield from self._starts_with(END)

    def _parameter(self, writer: ArgumentsWriter) -> Program[str | None]:
        """Read an argument; return the marker after it, None if the text ends."""
        name, marker = yield from self._take_until(">", FUNCTION_END)
        if marker != ">":
            return marker
        writer.begin(name.strip())
        held = ""  # a line break that may be the last
        if (yield from self._peek()) == "\n":
            self._advance(self._at + 1)
        while True:
            text, marker = yield from self._take(PARAMETER_END, PARAMETER, FUNCTION_END)
            if marker is None and not text:
                return None
            text = held + text
            held = "\n" if text.endswith("\n") else ""
            writer.add(text[: len(text) - len(held)])
            if marker is not None:
                writer.end()
                return marker
