"""Outputs of models, with tool calls and reasoning, as their chat templates ask for them. vLLM's results are in vllm.json."""

from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "detailed": {"type": "boolean"},
                    "where": {"type": "object"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "until": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
            },
        },
    },
]

CODE = 'def f(x):\n    return "a\\\\b" if x < 3 else {"k": [1]}\n\n# é 你好\n'
JSON_CODE = CODE.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

_WEATHER = '{"city": "Zürich", "days": 3, "ratio": 0.5, "detailed": true, "where": {"lat": [1, {"b": "}"}]}, "tags": ["a", "b"]}'
_FILE = f'{{"path": "a.py", "text": "{JSON_CODE}"}}'

_HERMES = {
    "text": "Hello, <b>world</b>! 1 < 2",
    "one": f'<tool_call>\n{{"name": "get_weather", "arguments": {_WEATHER}}}\n</tool_call>',
    "code": f'I write it.\n\n<tool_call>\n{{"name": "write_file", "arguments": {_FILE}}}\n</tool_call>',
    "two": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "arguments first": '<tool_call>{"arguments": {"city": "Bern"}, "name": "get_weather"}</tool_call>',
    "text after": 'Yes.<tool_call>{"name": "now", "arguments": {}}</tool_call>\nThat was it.',
    "no end marker": '<tool_call>\n{"name": "now", "arguments": {}}',
    "not JSON": "So: <tool_call>get_weather(Bern)</tool_call> done",
    "no name": '<tool_call>{"arguments": {}}</tool_call>',
    "no arguments": '<tool_call>{"name": "now"}</tool_call>',
    "cut off before the name": 'Well <tool_call>\n{"na',
    "marker alone": "a <tool_call>",
    "half a marker": "a <tool_ca",
}

_V3, _V31 = (
    {
        "text": "Hello, world! 1 < 2 ",
        "one": f"<｜tool▁calls▁begin｜>{call('get_weather', _WEATHER)}<｜tool▁calls▁end｜>",
        "code": f"I write it.\n<｜tool▁calls▁begin｜>{call('write_file', _FILE)}<｜tool▁calls▁end｜>",
        "two": f"<｜tool▁calls▁begin｜>{call('get_weather', '{}')}{between}{call('now', '{}')}<｜tool▁calls▁end｜>",
        "no end marker": f"<｜tool▁calls▁begin｜>{call('now', '{}')}",
    }
    for call, between in (
        (
            lambda n, a: f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜>",
            "\n",
        ),
        (lambda n, a: f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{a}<｜tool▁call▁end｜>", ""),
    )
)


def _dsml(name: str, *arguments: tuple[str, str, str]) -> str:
    inner = "".join(f'<｜DSML｜parameter name="{k}" string="{s}">{v}</｜DSML｜parameter>\n' for k, s, v in arguments)
    return f'<｜DSML｜invoke name="{name}">\n{inner}</｜DSML｜invoke>\n'


_V32 = {
    "text": "Hello, <world>!",
    "one": "<｜DSML｜function_calls>\n"
    + _dsml(
        "get_weather",
        ("city", "true", "Zürich"),
        ("days", "false", "3"),
        ("ratio", "false", "0.5"),
        ("detailed", "false", "true"),
        ("where", "false", '{"lat": [1, {"b": "}"}]}'),
        ("tags", "false", '["a", "b"]'),
    )
    + "</｜DSML｜function_calls>",
    "code": "I write it.\n\n<｜DSML｜function_calls>\n"
    + _dsml("write_file", ("path", "true", "a.py"), ("text", "true", CODE))
    + "</｜DSML｜function_calls>",
    "two": "<｜DSML｜function_calls>\n"
    + _dsml("get_weather", ("city", "true", "5"))
    + _dsml("now")
    + "</｜DSML｜function_calls>",
    "wrong types": "<｜DSML｜function_calls>\n"
    + _dsml(
        "get_weather", ("city", "false", "5"), ("days", "true", "7"), ("until", "false", "null"), ("x", "false", "{y")
    )
    + "</｜DSML｜function_calls>",
    "text after": "<｜DSML｜function_calls>\n" + _dsml("now") + "</｜DSML｜function_calls>\nmore",
}


def _glm(name: str, *arguments: tuple[str, str], line: str = "\n") -> str:
    inner = "".join(f"<arg_key>{k}</arg_key>{line}<arg_value>{v}</arg_value>{line}" for k, v in arguments)
    return f"<tool_call>{name}{line}{inner}</tool_call>"


_GLM = {
    "text": "Hello, <b>world</b>! 1 < 2",
    "one": _glm(
        "get_weather",
        ("city", "Zürich"),
        ("days", "3"),
        ("ratio", "0.5"),
        ("detailed", "true"),
        ("where", '{"lat": [1, {"b": "}"}]}'),
        ("tags", '["a", "b"]'),
    ),
    "one line": "ok" + _glm("get_weather", ("city", "Bern"), ("until", "null"), line=""),
    "code": "I write it.\n" + _glm("write_file", ("path", "a.py"), ("text", CODE)),
    "two": _glm("get_weather", ("city", "5")) + "\n" + _glm("now"),
    "no arguments": _glm("now", line=""),
    "wrong types": _glm("get_weather", ("city", "5"), ("days", "many"), ("unknown", "5"), ("detailed", "1")),
    "text after": _glm("now", line="") + "\nThat was it.",
    "half a marker": "a <tool_ca",
}


def _coder(name: str, *arguments: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


_CODER = {
    "text": "Hello, <b>world</b>! 1 < 2",
    "one": _coder(
        "get_weather",
        ("city", "Zürich"),
        ("days", "3"),
        ("ratio", "0.5"),
        ("detailed", "true"),
        ("where", '{"lat": [1, {"b": "}"}]}'),
        ("tags", '["a", "b"]'),
    ),
    "code": "I write it.\n\n" + _coder("write_file", ("path", "a.py"), ("text", CODE)),
    "two": _coder("get_weather", ("city", "5"), ("until", "9")) + "\n" + _coder("now"),
    "no closing tag of a value": "<tool_call>\n<function=write_file>\n<parameter=path>\na\n<parameter=text>\nb\n</parameter>\n"
    "</function>\n</tool_call>",
    "no opening tag": "<function=now>\n</function>\n</tool_call>",
    "text after": _coder("now") + "\nThat was it.",
    "wrong types": _coder("get_weather", ("days", "many"), ("unknown", "5"), ("where", "{x")),
}


def _minimax(*calls: str) -> str:
    return "<minimax:tool_call>\n" + "\n".join(calls) + "\n</minimax:tool_call>"


def _invoke(name: str, *arguments: tuple[str, str], quote: str = '"') -> str:
    inner = "".join(f"<parameter name={quote}{k}{quote}>{v}</parameter>\n" for k, v in arguments)
    return f"<invoke name={quote}{name}{quote}>\n{inner}</invoke>"


_MINIMAX = {
    "text": "Hello, <b>world</b>! 1 < 2",
    "one": _minimax(
        _invoke(
            "get_weather",
            ("city", "Zürich"),
            ("days", "3"),
            ("ratio", "0.5"),
            ("detailed", "true"),
            ("where", '{"lat": [1, {"b": "}"}]}'),
            ("tags", '["a", "b"]'),
        )
    ),
    "code": "I write it.\n" + _minimax(_invoke("write_file", ("path", "a.py"), ("text", CODE))),
    "two": _minimax(_invoke("get_weather", ("city", "5"), quote="'"), _invoke("now", quote="")),
    "text after": _minimax(_invoke("now")) + "\nThat was it.",
}

_MISTRAL = {
    "text": "Hello, [world]!",
    "array": f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {_WEATHER}}}]',
    "array of two": 'Wait.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bern"}}, '
    '{"name": "now", "arguments": {}}]',
}
_MISTRAL_11 = {
    "text": "Hello, [world]!",
    "arguments": f"[TOOL_CALLS]get_weather[ARGS]{_WEATHER}",
    "code": f"I write it.[TOOL_CALLS]write_file[ARGS]{_FILE}",
    "two": '[TOOL_CALLS]get_weather[ARGS]{"city": "Bern"}[TOOL_CALLS]now[ARGS]{}',
    "no separator": 'Wait.[TOOL_CALLS]get_weather{"city": "Bern"}',
}

_LLAMA = {
    "text": "Hello, world!",
    "one": f'{{"name": "get_weather", "parameters": {_WEATHER}}}',
    "tagged": f'<|python_tag|>{{"name": "write_file", "parameters": {_FILE}}}',
    "two": '{"name": "get_weather", "parameters": {"city": "Bern"}}; {"name": "now", "arguments": {}}',
    "type first": '{"type": "function", "name": "now", "parameters": {}}',
    "JSON answer": '{"answer": 42}',
    "no arguments": '{"name": "now"}',
    "not JSON": "{name: now}",
}

TOOL_OUTPUTS: dict[str, dict[str, str]] = {
    "hermes": _HERMES,
    "deepseek_v3": _V3,
    "deepseek_v31": _V31,
    "deepseek_v32": _V32,
    "deepseek_v4": {name: text.replace("function_calls", "tool_calls") for name, text in _V32.items()},
    "glm45": _GLM,
    "qwen3_coder": _CODER,
    "minimax_m2": _MINIMAX,
    "mistral": _MISTRAL,
    "mistral of version 11": _MISTRAL_11,
    "llama3_json": _LLAMA,
}
"""Outputs of each tool parser: what they show, and the text."""


def _thoughts(start: str, end: str, call: str) -> dict[str, str]:
    return {
        "both": f"{start}\nHmm, 1 < 2.\n{end}\n\nYes.",
        "no start": f"Hmm, 1 < 2.\n{end}\n\nYes.",
        "only reasoning": f"{start}Hmm",
        "nothing after": f"{start}Hmm{end}",
        "empty": f"{start}\n\n{end}\n\nYes.",
        "tool call": f"{start}Hmm{call}x" if call else f"{start}Hmm{end}x",
    }


REASONING_OUTPUTS: dict[str, dict[str, str]] = {
    "deepseek_r1": _thoughts("<think>", "</think>", ""),
    "qwen3": _thoughts("<think>", "</think>", "<tool_call>"),
    "glm45": _thoughts("<think>", "</think>", "<tool_call>"),
    "minimax_m2": _thoughts("<think>", "</think>", "<minimax:tool_call>"),
    "mistral": {name: text for name, text in _thoughts("[THINK]", "[/THINK]", "").items() if name != "no start"},
}
"""Outputs of each reasoning parser."""
