"""A model's ``config.json`` with typed access: what is missing or impossible is said by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadmaster.errors import ConfigError
from loadmaster.limits import OF_KEYS, SIZE


class Config:
    """Typed reading of a config. Every accessor raises `ConfigError` naming the key, what was expected and found."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a count or a size: an integer of at least ``least``, within its limit (`loadmaster.limits`)."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"config.json has no {key!r}", hint=f"the architecture needs {key}, an integer")
            return default
        if type(value) is not int or value < least:
            raise ConfigError(f"config.json: {key} is {_short(value)}, expected an integer of at least {least}")
        limit = OF_KEYS.get(key, SIZE)
        if value > limit.value:
            raise ConfigError(
                f"config.json: {key} is {_short(value)}, and the limit is {limit.value:,}", hint=limit.hint
            )
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise ConfigError(f"config.json: {key} is {_short(value)}, expected true or false")
        return value

    def optional_size(self, key: str) -> int | None:
        """Return a size, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.size(key)

    def sizes(self, key: str) -> tuple[int, ...]:
        """Return a list of counts (of layers, mostly); absent or null is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= SIZE.value for v in value):
            raise ConfigError(f"config.json: {key} is {_short(value)}, expected a list of integers of at least 0")
        return tuple(value)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; absent or null is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"config.json: {key} is {_short(value)}, expected a list of strings")
        return tuple(value)

    @property
    def dtype(self) -> str | None:
        """The model's number format (``dtype``, or ``torch_dtype`` in older configs) by its safetensors name."""
        value = self.values.get("dtype", self.values.get("torch_dtype"))
        if value is None:
            return None
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPE_NAMES:
            raise ConfigError(f"config.json: dtype is {_short(value)}, expected one of {', '.join(DTYPE_NAMES)}")
        return DTYPE_NAMES[value.removeprefix("torch.")]


DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32"}
"""vLLM's and Hugging Face's names of the model dtypes."""


def _short(value: object) -> str:
    text = (
        repr(value) if not isinstance(value, int) or abs(value) < 10**60 else f"an integer of {value.bit_length()} bits"
    )
    return text if len(text) <= 60 else text[:57] + "..."
