"""Other values for the keys of a config: plausible ones, and hostile ones."""

from __future__ import annotations

from typing import Any

Path = tuple[str | int, ...]

HOSTILE: tuple[Any, ...] = (None, -1, 0, 2**31, 2**63, 10**30, 1.5, True, "x", [], {}, [None], "", {"a": 1}, -(10**20))
WORDS = (
    "LlamaForCausalLM",
    "Qwen3MoeForCausalLM",
    "DeepseekV3ForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "fp8",
    "awq",
    "gptq",
    "mxfp4",
    "modelopt",
    "bitsandbytes",
    "nf4",
    "affine",
    "compressed-tensors",
    "channel",
    "group",
    "tensor",
    "block",
    "float16",
    "float32",
    "bfloat16",
    "re:(",
    "re:.*",
    "*",
    "full_attention",
    "shared",
    "dense",
)
"""Strings that mean something somewhere in a config."""


def key_paths(value: Any, before: Path = ()) -> list[Path]:
    """Return the path of every key, and of every list element (the first four), in a JSON value.

    >>> key_paths({"a": {"b": [1]}})
    [('a',), ('a', 'b'), ('a', 'b', 0)]
    """
    pairs: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value[:4]))
    return [p for key, inner in pairs for p in ((*before, key), *key_paths(inner, (*before, key)))]


def change_value(value: Any, choice: int) -> Any:
    """Return another value: mostly one that could have been meant, sometimes one that could not.

    >>> change_value(8, 0), change_value(True, 0), change_value([1, 2], 0)
    (9, False, [1])
    """
    if choice % 3 == 2:
        return HOSTILE[choice // 3 % len(HOSTILE)]
    way = choice // 3 * 2 + choice % 3
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return (value + 1, value - 1, value * 2, value // 2, 1, 2, 3, 4, 64, 128, 256, value + 0.0)[way % 12]
    if isinstance(value, float):
        return (value * 2, -value, int(value), 0.5)[way % 4]
    if isinstance(value, str):
        return WORDS[way % len(WORDS)]
    if isinstance(value, list):
        return (value[:-1], value * 2, value[::-1], [*value, "x"], value[0] if value else 0)[way % 5]
    if isinstance(value, dict):
        return ({}, {**value, "x": 1}, list(value), dict(list(value.items())[:-1]))[way % 4]
    return (1, 8, True, "x", [128, 128], {"a": 1})[way % 6]
