"""A model's ``config.json`` with typed access: an error names the key that is missing or impossible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loadmaster.errors import ConfigError
from loadmaster.limits import OF_KEYS, SIZE


class Config:
    """Typed access to a config. Every accessor raises `ConfigError` with the key, the value and what was expected.

    ``where`` is what errors call these values: ``config.json``, or a section of it.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a count or a size: an integer of at least ``least``, within its limit (`loadmaster.limits`)."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{self.where} has no {key!r}", hint=f"the architecture needs {key}, an integer")
            return default
        if type(value) is not int or value < least:
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected an integer of at least {least}")
        limit = OF_KEYS.get(key, SIZE)
        if value > limit.value:
            raise ConfigError(
                f"{self.where}: {key} is {_short(value)}, and the limit is {limit.value:,}", hint=limit.hint
            )
        return value

    def number(self, key: str, default: float | None = None, *, above: float | None = None) -> float:
        """Return a number, greater than ``above`` where that is given."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{self.where} has no {key!r}", hint=f"the architecture needs {key}, a number")
            return default
        expected = "a number" if above is None else f"a number above {above:g}"
        is_number = type(value) in (int, float) and abs(value) < _LARGEST  # false for NaN too
        if not is_number or (above is not None and value <= above):
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected {expected}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean."""
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected true or false")
        return value

    def optional_size(self, key: str) -> int | None:
        """Return a size, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.size(key)

    def sizes(self, key: str) -> tuple[int, ...]:
        """Return a list of counts (of layers, mostly); absent or null is empty."""
        value, limit = self.values.get(key) or [], OF_KEYS.get(key, SIZE).value
        if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= limit for v in value):
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected a list of integers of at least 0")
        return tuple(value)

    def marks(self, key: str, count: int) -> tuple[bool, ...]:
        """Return a list of 0 and 1 for each of ``count`` layers as booleans; absent or null is empty."""
        values = self.sizes(key)
        if values and (len(values) != count or not {*values} <= {0, 1}):
            raise ConfigError(f"{self.where}: {key} must give 0 or 1 for each of {count} layers")
        return tuple(value == 1 for value in values)

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; absent or null is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected a list of strings")
        return tuple(value)

    def types(self, key: str, names: Sequence[str], count: int, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a list with the type of each of ``count`` layers, one of ``names``; absent or null is ``default``."""
        types = self.strings(key) or tuple(default)
        if len(types) != count or not {*types} <= {*names}:
            raise ConfigError(f"{self.where}: {key} must give {' or '.join(names)} for each of {count} layers")
        return types

    def section(self, key: str) -> Config:
        """Return an object within the config; absent or null is empty."""
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected an object")
        return Config(value, f"{self.where}, {key}")

    def objects(self, key: str) -> tuple[Config, ...]:
        """Return a list of objects within the config, of layers mostly; absent or null is empty."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
            raise ConfigError(f"{self.where}: {key} is {_short(value)}, expected a list of objects")
        return tuple(Config(v, f"{self.where}, {key}[{number}]") for number, v in enumerate(value))

    @property
    def dtype(self) -> str | None:
        """The model's number format (``dtype``, or ``torch_dtype`` in older configs) by its safetensors name."""
        value = self.values.get("dtype", self.values.get("torch_dtype"))
        if value is None:
            return None
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPE_NAMES:
            raise ConfigError(f"{self.where}: dtype is {_short(value)}, expected one of {', '.join(DTYPE_NAMES)}")
        return DTYPE_NAMES[value.removeprefix("torch.")]


DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32"}
"""vLLM's and Hugging Face's names of the model dtypes."""


_LARGEST = 1e300
"""Larger numbers are no use to any model, and do not fit a float."""


def _short(value: object) -> str:
    text = (
        repr(value) if not isinstance(value, int) or abs(value) < 10**60 else f"an integer of {value.bit_length()} bits"
    )
    return text if len(text) <= 60 else text[:57] + "..."
