"""``{"name": …, "parameters": {…}}``, several separated by semicolons, alone or after ``<|python_tag|>``: Llama 3."""

from __future__ import annotations

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

TAG = "<|python_tag|>"


class LlamaJsonParser(CallParser):
    """vLLM's ``llama3_json``. Text that begins with neither is content, also if a call follows it."""

    markers = (TAG,)

    def _parse(self) -> Program[None]:
        self._consumed = []
        yield from self._skip_space()
        is_tagged = yield from self._starts_with(TAG)
        before, self._consumed = "".join(self._consumed), None
        while (yield from self._skip_space()) == "{":
            if not (yield from self._call_as_json(before)):
                before = ""
                break
            before = ""
            if (yield from self._skip_space()) != ";":
                break
            self._advance(self._at + 1)
        self._content(before, is_malformed=is_tagged)
        while (yield from self._peek()):
            self._content(self._advance(len(self._text)))
        self._end_content()
