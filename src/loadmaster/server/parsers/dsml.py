"""DeepSeek V3.2's markup: ``<｜DSML｜invoke name="…">`` with a ``<｜DSML｜parameter name="…" string="true|false">`` each."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from loadmaster.server.parsers.arguments import ArgumentsWriter
from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

INVOKE, INVOKE_END = '<｜DSML｜invoke name="', "</｜DSML｜invoke>"
PARAMETER, PARAMETER_END = "<｜DSML｜parameter", "</｜DSML｜parameter>"
_ATTRIBUTES: Final = re.compile(r'\s+name="([^"]+)"(?:\s+string="([^"]*)")?\s*')


class DeepSeekV32Parser(CallParser):
    """vLLM's ``deepseek_v32``. A value whose ``string`` is not true is JSON if that is possible, else a string."""

    start: ClassVar[str] = "<｜DSML｜function_calls>"
    end: ClassVar[str] = "</｜DSML｜function_calls>"
    markers = ("｜DSML｜", start, end)

    def _parse(self) -> Program[None]:
        while True:
            text, marker = yield from self._take(self.start, INVOKE)
            self._content(text)
            if marker is None and not text:
                break
            is_open = marker is not None
            if marker == INVOKE:
                yield from self._call()
            while is_open:
                text, marker = yield from self._take_until(INVOKE, self.end)
                if is_open := marker == INVOKE:
                    yield from self._call()
        self._end_content()

    def _call(self) -> Program[None]:
        name, marker = yield from self._take_until('">')
        if marker is None or not name:
            self._content(f"{INVOKE}{name}{marker or ''}", is_malformed=True)
            return
        self._begin(name)
        writer = self._writer(name)
        while True:
            _, marker = yield from self._take_until(PARAMETER, INVOKE_END, self.end)
            if marker != PARAMETER:
                break
            yield from self._parameter(writer)
        if marker is not None:
            writer.close()

    def _parameter(self, writer: ArgumentsWriter) -> Program[None]:
        attributes, _ = yield from self._take_until(">")
        found = _ATTRIBUTES.fullmatch(attributes)
        if found is None or found[2] != "true":
            value, marker = yield from self._take_until(PARAMETER_END)
            if found is not None and marker is not None:
                writer.write_json(found[1], value)
            return
        writer.begin(found[1])
        while True:
            text, marker = yield from self._take(PARAMETER_END)
            writer.add(text)
            if marker is not None:
                writer.end()
                return
            if not text:
                return


class DeepSeekV4Parser(DeepSeekV32Parser):
    """vLLM's ``deepseek_v4``, whose calls are in ``<｜DSML｜tool_calls>``."""

    start = "<｜DSML｜tool_calls>"
    end = "</｜DSML｜tool_calls>"
    markers = ("｜DSML｜", start, end)
