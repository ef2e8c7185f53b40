"""Tool calls that a grammar forces, as vLLM has them: a JSON array of calls, or the arguments of one named function."""

from __future__ import annotations

from loadmaster.server.parsers.calls import CallParser
from loadmaster.server.parsers.reader import Program


class RequiredCallsParser(CallParser):
    """``[{"name": …, "parameters": {…}}, …]``, the output for ``tool_choice: "required"``. Anything else is content."""

    def _parse(self) -> Program[None]:
        self._consumed = []
        yield from self._skip_space()
        is_array = yield from self._starts_with("[")
        before, self._consumed = "".join(self._consumed), None
        while is_array and (yield from self._skip_space()) == "{":
            is_array = yield from self._call_as_json(before)
            before = ""
            if is_array and (yield from self._skip_space()) in (",", "]"):
                self._advance(self._at + 1)
        self._content(before)
        while (yield from self._peek()):
            self._content(self._advance(len(self._text)))
        self._end_content()


class NamedCallParser(CallParser):
    """The arguments of the function ``name``, and nothing else: the output for a ``tool_choice`` that names it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _parse(self) -> Program[None]:
        if not (yield from self._skip_space()):
            return
        self._begin(self._name)
        while (yield from self._peek()):
            self._arguments(self._advance(len(self._text)))
