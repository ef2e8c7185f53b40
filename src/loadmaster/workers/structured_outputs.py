"""What an answer has to look like: a JSON schema, a regular expression, a list of choices, or a grammar.

`StructuredOutputs` is what a user asks for, with vLLM's names (``StructuredOutputsParams`` in ``vllm/sampling_params.py``).
The engine checks it in a process with limits (`loadmaster.engine.grammar_check`), which gives a `Grammar`: a text that
llguidance reads. Workers take grammars alone (`loadmaster.workers.grammars`). Plain data, and no library is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadmaster.arguments import shown
from loadmaster.errors import RequestError

MAX_CHARACTERS: Final = 256 * 1024
"""The longest schema, expression, grammar or list of choices."""

MAX_NESTING: Final = 64
"""How deep a JSON schema may be nested, as in vLLM (``MAX_STRUCTURED_OUTPUT_JSON_NESTING``)."""

KINDS: Final = ("json", "regex", "choice", "grammar", "json_object")
"""The fields of which exactly one is given."""


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """What one request's answer has to look like. Exactly one of the first five is given.

    ``json`` is a JSON schema, as text or as an object; kept as text. ``regex`` matches the whole answer. ``choice``: the
    answer is one of these. ``grammar`` is in Lark's format or in that of llama.cpp (GBNF). ``json_object``: any JSON object.

    ``disable_any_whitespace``: JSON has no whitespace between its parts; else there may be any, or what
    ``whitespace_pattern`` matches. ``disable_additional_properties``: an object has only the properties that its schema
    names, unless the schema says otherwise.

    ``after``: the answer is free up to and including the first of these tokens, for example the one that ends a model's
    reasoning. This field is not vLLM's.

    Raises:
        RequestError: a value has the wrong type, is too long or nested too deep; or none or several are given.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    after: Sequence[int] = ()

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "is empty"
            raise _error(f"{what}, expected one of {', '.join(KINDS)}")
        for name in ("regex", "grammar", "whitespace_pattern"):
            _check_text(name, getattr(self, name))
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            _expect(name, getattr(self, name), bool, "true or false")
        if self.json_object not in (None, True):
            raise _error(f"has json_object={shown(self.json_object)}, expected true")
        if self.grammar is not None and not self.grammar.strip():
            raise _error("has an empty grammar")
        if "\0" in (self.regex or ""):
            raise _error("has a NUL character in its regex")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in self.after):
            raise _error(f"has after={shown(self.after)}, expected token ids")
        object.__setattr__(self, "after", tuple(self.after))

    @property
    def kind(self) -> str:
        """Which of the fields is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)


@dataclass(frozen=True, slots=True)
class Grammar:
    """Checked structured outputs: ``text`` is a grammar in llguidance's format. ``after`` as in `StructuredOutputs`."""

    text: str
    after: tuple[int, ...] = ()


def _choices(value: object) -> tuple[str, ...]:
    _expect("choice", value, (list, tuple), "a list of texts")
    assert isinstance(value, (list, tuple))
    for choice in value:
        _expect("choice", choice, str, "a list of texts")
        _check_text("choice", choice)
    if not value:
        raise _error("has an empty list of choices")
    if (length := sum(map(len, value))) > MAX_CHARACTERS:
        raise _too_long("choice", length)
    return tuple(value)


def _schema_text(value: object) -> str:
    """Return a JSON schema as text, with its properties in the order given."""
    _expect("json", value, (str, Mapping), "a JSON schema")
    if isinstance(value, str):
        _check_text("json", value)
        try:
            value = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            what = "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"
            raise _error(f"has a schema that is {what}") from None
        if not isinstance(value, dict):
            raise _error(f"has the schema {shown(value)}, expected a JSON object")
    _check_nesting(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _error(f"has a schema that is not JSON: {error}") from None
    _check_text("json", text)
    return text


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _check_nesting(schema: object) -> None:
    level, depth = [schema], 0
    while level:
        if depth > MAX_NESTING:
            raise _error(f"has a schema that is nested more than {MAX_NESTING} deep")
        inner: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += value.values()
            elif isinstance(value, (list, tuple)):
                inner += value
        level, depth = [v for v in inner if isinstance(v, (Mapping, list, tuple))], depth + 1


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    _expect(name, value, str, "a text")
    assert isinstance(value, str)
    if len(value) > MAX_CHARACTERS:
        raise _too_long(name, len(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _error(f"has a lone surrogate in {name}, U+{ord(value[error.start]):04X}") from None


def _expect(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds):
        raise _error(f"has {name}={shown(value)}, expected {expected}")


def _too_long(name: str, length: int) -> RequestError:
    return _error(f"has {name} with {length:,} characters, expected at most {MAX_CHARACTERS:,}")


def _error(what: str) -> RequestError:
    return RequestError(f"structured_outputs {what}")
