"""Tools in requests: the functions that a model may call, and the calls in earlier messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadmaster.errors import clip
from loadmaster.server.protocol.fields import FieldError

MAX_NAME: Final = 256
"""The longest name of a function."""


def check_tools(tools: Sequence[Any], choice: str | Mapping[str, Any] | None) -> None:
    """Refuse tools that are not functions with a name, and a ``tool_choice`` that does not fit them.

    Raises:
        FieldError: names the field.
    """
    if not tools:
        raise FieldError("tools is empty, expected at least one tool; leave it out for none", "tools")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise FieldError(f'tools[{i}].type is not supported, only "function" is', "tools")
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise FieldError(f"tools[{i}].function is missing or not an object", "tools")
        name = function.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise FieldError(f"tools[{i}].function.name is not a name of 1 to {MAX_NAME} characters", "tools")
        for field, kinds, expected in (("description", str, "a string"), ("parameters", Mapping, "an object")):
            if not isinstance(function.get(field), kinds | None):
                raise FieldError(f"tools[{i}].function.{field} is not {expected}", "tools")
    if choice in (None, "none", "auto", "required"):
        return
    names = dict.fromkeys(t["function"]["name"] for t in tools)
    if (name := named_function(choice)) not in names:
        known = clip(", ".join(names))
        raise FieldError(f"tool_choice names the function {clip(repr(name))}, and the tools are {known}", "tool_choice")


def named_function(choice: str | Mapping[str, Any] | None) -> str:
    """Return the function that ``tool_choice`` names.

    Raises:
        FieldError: it names none.
    """
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise FieldError(
            f'tool_choice is {clip(repr(choice))}, expected "none", "auto", "required" or '
            '{"type": "function", "function": {"name": NAME}}',
            "tool_choice",
        )
    return name


def forced_calls(
    tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], *, one_call: bool
) -> dict[str, Any]:
    """Return the JSON schema of an answer that has to call tools, for checked values.

    For "required" it is an array of objects with ``name`` and ``parameters``, of one if ``one_call``; for a named function
    its arguments. vLLM has the same (``get_json_schema_from_tools``).
    """
    functions = {t["function"]["name"]: t["function"] for t in tools}
    if choice != "required":
        return _arguments(functions[named_function(choice)])
    calls = [
        {
            "type": "object",
            # an id lets references in the function's own schema find their target
            "properties": {"name": {"const": name}, "parameters": {"$id": f"urn:tool:{i}", **_arguments(function)}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for i, (name, function) in enumerate(functions.items())
    ]
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **({"maxItems": 1} if one_call else {})}


def calls_as_objects(calls: Any, number: int) -> list[dict[str, Any]]:
    """Return the ``tool_calls`` of message ``number`` as templates expect them: arguments are an object, not JSON text.

    Arguments that are no JSON object become an empty one, as in vLLM: a model may have written them, and the conversation
    must be able to go on.

    Raises:
        FieldError: a call is not one of a function with a name.
    """
    if not isinstance(calls, list):
        raise FieldError(f"messages[{number}].tool_calls is not a list", "messages")
    found = []
    for i, call in enumerate(calls):
        function = (
            call.get("function") if isinstance(call, Mapping) and call.get("type", "function") == "function" else None
        )
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FieldError(f"messages[{number}].tool_calls[{i}] is not a call of a function with a name", "messages")
        found.append({**call, "function": {**function, "arguments": _object(function.get("arguments"))}})
    return found


def calls_as_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with the arguments of their tool calls as JSON text, which some models' templates expect."""
    return [
        {
            **m,
            "tool_calls": [
                {
                    **c,
                    "function": {
                        **c["function"],
                        "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for c in m["tool_calls"]
            ],
        }
        if m.get("tool_calls")
        else dict(m)
        for m in messages
    ]


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object unless the schema itself says what they are."""
    parameters = dict(function.get("parameters") or {})
    says_what = {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"} & parameters.keys()
    return parameters if says_what else {"type": "object", **parameters}


def _object(arguments: Any) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return arguments if isinstance(arguments, Mapping) else {}
