"""Writes a call's arguments as JSON, from names and values that are plain text, by the types of the function's schema."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

MAX_SCHEMAS: Final = 256
"""The most alternatives (anyOf, oneOf, allOf) of an argument's schema that are looked at."""

_NAMES: Final = {
    **dict.fromkeys(("str", "text", "varchar", "char", "enum"), "string"),
    **dict.fromkeys(("int", "int32", "int64", "uint", "uint32", "uint64", "long", "short", "unsigned"), "integer"),
    **dict.fromkeys(("float", "float32", "float64", "double"), "number"),
    "bool": "boolean",
    "dict": "object",
    **dict.fromkeys(("arr", "list", "sequence"), "array"),
}
"""Names of types that are not JSON schema's, but that tools in use have. vLLM accepts the same."""

_KINDS: Final = (
    (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object")
)  # fmt: skip


class ArgumentsWriter:
    """Writes one call's arguments as a JSON object, in parts, to ``pass_on``.

    A value whose type can only be a string is passed on as it arrives; any other when it is complete. An argument without a
    schema is a string.
    """

    def __init__(self, properties: Mapping[str, Any], pass_on: Callable[[str], None]) -> None:
        self._properties, self._pass_on = properties, pass_on
        self._separator = "{"
        self._parts: list[str] | None = None
        self._types: frozenset[str] = frozenset()

    def begin(self, name: str) -> None:
        """Begin the argument ``name``."""
        self._pass_on(f"{self._separator}{_dumps(name)}: ")
        self._separator = ", "
        self._types = types_of(self._properties.get(name))
        self._parts = None if self._types == {"string"} else []
        if self._parts is None:
            self._pass_on('"')

    def add(self, text: str) -> None:
        """Add a part of the argument's value."""
        if self._parts is None:
            self._pass_on(_dumps(text)[1:-1])
        else:
            self._parts.append(text)

    def end(self) -> None:
        """End the argument."""
        self._pass_on('"' if self._parts is None else _dumps(value_of("".join(self._parts), self._types)))

    def write_json(self, name: str, text: str) -> None:
        """Write a whole argument whose value is JSON; it is a string if it is not valid. The schema's types still apply."""
        value, types = parsed(text), types_of(self._properties.get(name))
        if name in self._properties and not isinstance(value, list | dict):
            value = value_of(value if isinstance(value, str) else _dumps(value), types)
        self._pass_on(f"{self._separator}{_dumps(name)}: {_dumps(value)}")
        self._separator = ", "

    def close(self) -> None:
        """End the arguments."""
        self._pass_on("{}" if self._separator == "{" else "}")


def types_of(schema: Any) -> frozenset[str]:
    """Return the JSON types that a schema allows; string, if it says nothing.

    >>> sorted(types_of({"anyOf": [{"type": "int"}, {"enum": [None]}]})), sorted(types_of({}))
    (['integer', 'null'], ['string'])
    """
    types: set[str] = set()
    schemas, num_seen = [schema], 0
    while schemas and num_seen < MAX_SCHEMAS:
        one = schemas.pop()
        num_seen += 1
        if not isinstance(one, Mapping):
            types.add("string")
            continue
        before = len(schemas)
        names = one.get("type")
        named = {n for n in (names if isinstance(names, list) else [names]) if isinstance(n, str)}
        named |= {_kind(v) for v in one["enum"]} if isinstance(one.get("enum"), list) else set()
        for field in ("anyOf", "oneOf", "allOf"):
            schemas += one[field] if isinstance(one.get(field), list) else []
        types |= named
        if not named and len(schemas) == before:
            types.add("string")
    names_of = (name.strip().lower() for name in types)
    return frozenset(_NAMES.get(name, name) for name in names_of) or frozenset({"string"})


def value_of(text: str, types: frozenset[str]) -> Any:
    """Return ``text`` as the first of the types that it is valid for, else as a string.

    The order is: null, integer, number, boolean, object or array, string.

    >>> [value_of(t, frozenset({"integer", "string"})) for t in ("5", "5x")]
    [5, '5x']
    """
    if "null" in types and text.lower() == "null":
        return None
    if "integer" in types and (whole := _number(text, int)) is not None:
        return whole
    if "number" in types and (number := _number(text, float)) is not None and math.isfinite(number):
        return int(number) if number == int(number) else number
    if "boolean" in types and (word := text.lower().strip()) in ("true", "1", "false", "0"):
        return word in ("true", "1")
    if types & {"object", "array"} or "string" not in types:
        return parsed(text)
    return text


def parsed(text: str) -> Any:
    """Return ``text`` read as JSON if that is possible, else ``text``. Numbers that JSON does not have are refused."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


def _kind(value: Any) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "null")


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
