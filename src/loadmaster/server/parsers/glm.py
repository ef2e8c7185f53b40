"""``<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value>…</tool_call>``: GLM-4.5 to GLM-5."""

from __future__ import annotations

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

START, END = "<tool_call>", "</tool_call>"
KEY, KEY_END, VALUE, VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GlmParser(CallParser):
    """vLLM's ``glm45`` and ``glm47``. Unlike there, a call of a function that is not among the tools is reported."""

    markers = (START, END, KEY, KEY_END, VALUE, VALUE_END)

    def _parse(self) -> Program[None]:
        while (yield from self._text_before(START)):
            yield from self._call()
        self._end_content()

    def _call(self) -> Program[None]:
        before, marker = yield from self._take_until(KEY, END)
        if marker is None or not (name := before.strip()):
            self._content(f"{START}{before}{marker or ''}", is_malformed=True)
            return
        self._begin(name)
        writer = self._writer(name)
        while marker == KEY:
            key, marker = yield from self._take_until(KEY_END, END)
            if marker == KEY_END:
                _, marker = yield from self._take_until(VALUE, END)
            if marker == VALUE:
                writer.begin(key.strip())
                while True:
                    text, marker = yield from self._take(VALUE_END, END)
                    writer.add(text)
                    if marker is not None:
                        break
                    if not text:
                        return  # cut off
                writer.end()
            if marker == VALUE_END:
                _, marker = yield from self._take_until(KEY, END)
        if marker is not None:
            writer.close()
