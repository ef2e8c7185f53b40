"""Architecture name → family. One line a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadmaster.architectures import deepseek, llama
from loadmaster.architectures.schema import Family
from loadmaster.errors import ConfigError

FAMILIES: tuple[Family, ...] = (
    deepseek.FAMILY,
    llama.FAMILY,
)


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of ``config["architectures"][0]``.

    Raises:
        ConfigError: there is no such key, or the architecture is not known; the hint names those that are.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(
            "config.json names no architecture",
            hint='"architectures" must be a list with the model class, such as ["LlamaForCausalLM"]',
        )
    for family in FAMILIES:
        if names[0] in family.architectures:
            return family
    raise ConfigError(
        f"config.json: the architecture {names[0]!r} is not known",
        hint=f"known: {', '.join(known())}",
        code="architecture-unknown",
    )


def known() -> tuple[str, ...]:
    """Return the names of all architectures that are described."""
    return tuple(name for family in FAMILIES for name in family.architectures)
