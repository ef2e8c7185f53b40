"""``[TOOL_CALLS]``: then a JSON array of calls, or, from version 11 of the tokenizer on, ``name[ARGS]{…}`` for each call."""

from __future__ import annotations

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program

CALLS, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"


class MistralParser(CallParser):
    """vLLM's ``mistral``. Which of the two forms it is, the character after the marker decides."""

    markers = (CALLS, ARGUMENTS)

    def _parse(self) -> Program[None]:
        while (yield from self._text_before(CALLS)):
            if (yield from self._skip_space()) in ("[", "{"):
                yield from self._array()
            else:
                yield from self._named()
        self._end_content()

    def _array(self) -> Program[None]:
        before = CALLS
        if self._text[self._at] == "[":
            before += self._advance(self._at + 1)
        while (yield from self._skip_space()) == "{":
            if not (yield from self._call_as_json(before)):
                return
            before = ""
            if (yield from self._skip_space()) in (",", "]"):
                self._advance(self._at + 1)
        if before:
            self._content(before, is_malformed=True)

    def _named(self) -> Program[None]:
        before, marker = yield from self._take_until(ARGUMENTS, "{", CALLS)
        if marker in (None, CALLS) or not (name := before.strip()):
            self._content(f"{CALLS}{before}{marker or ''}", is_malformed=True)
            return
        if marker == "{":
            self._at -= 1
        if (yield from self._skip_space()) != "{":
            self._content(f"{CALLS}{before}{marker}", is_malformed=True)
            return
        self._begin(name)
        yield from self._json(self._arguments)
