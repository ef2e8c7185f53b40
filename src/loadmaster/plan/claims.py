"""What the config claims of a checkpoint's number formats. The headers decide; claims are checked against them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.formats import Format, fp8_block


@dataclass(frozen=True, slots=True)
class Claims:
    """The model's dtype, the quantised format, and the modules said to be left out of it."""

    model_dtype: str
    format: Format | None = None
    ignored: frozenset[str] = frozenset()
    ignored_patterns: tuple[str, ...] = ()

    def ignores(self, tensor: str) -> bool:
        """Return whether the config says that the module of this stored weight is not quantised."""
        module = tensor.rpartition(".")[0]
        if not self.ignored and not self.ignored_patterns:
            return False
        parts = module.split(".")
        prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
        return any(p in self.ignored for p in prefixes) or any(re.match(p, module) for p in self.ignored_patterns)


def read_claims(config: Config, default_dtype: str) -> Claims:
    """Read ``dtype`` and ``quantization_config``.

    Raises:
        ConfigError: the quantization_config is malformed.
        UnsupportedError: it names a method that is not supported yet.
    """
    dtype = config.dtype or default_dtype
    quantization = config.values.get("quantization_config")
    if quantization is None:
        return Claims(dtype)
    if not isinstance(quantization, Mapping):
        raise ConfigError("config.json: quantization_config is not an object")
    ignored = _ignored(quantization)
    return Claims(
        dtype,
        _format(quantization),
        frozenset(n for n in ignored if not n.startswith("re:")),
        tuple(n.removeprefix("re:") for n in ignored if n.startswith("re:")),
    )


def _ignored(quantization: Mapping[str, Any]) -> list[str]:
    value = quantization.get("modules_to_not_convert") or quantization.get("ignore") or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError("config.json: quantization_config.modules_to_not_convert is not a list of strings")
    for pattern in (v.removeprefix("re:") for v in value if v.startswith("re:")):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.json: quantization_config ignores by a broken pattern {pattern!r}") from error
    return value


def _format(quantization: Mapping[str, Any]) -> Format:
    method = quantization.get("quant_method")
    if method != "fp8":
        raise UnsupportedError(
            f"config.json: quantization_config.quant_method {method!r} is not supported yet",
            hint="supported: fp8 with weight_block_size",
        )
    if quantization.get("fmt", "e4m3") != "e4m3":
        raise UnsupportedError(f"config.json: quantization_config.fmt {quantization['fmt']!r} is not supported yet")
    block = quantization.get("weight_block_size")
    if block is None:
        raise UnsupportedError(
            "config.json: quantization_config has no weight_block_size; FP8 per tensor is not supported yet"
        )
    if not (isinstance(block, list) and len(block) == 2 and all(type(b) is int and 0 < b < 2**31 for b in block)):
        raise ConfigError("config.json: quantization_config.weight_block_size must be two positive integers")
    return fp8_block((block[0], block[1]))
