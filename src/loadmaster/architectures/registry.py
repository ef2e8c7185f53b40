"""Architecture name → family. One line for each family of this package; other packages add theirs through an entry point.

This package's families are looked up first. Other packages are searched (`loadmaster.architectures.plugins`) only for an
architecture that none of these has, so the search costs nothing where it isn't needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loadmaster.architectures import (
    deepseek,
    gemma3,
    glm4_moe,
    gpt_oss,
    granite_moe,
    llama,
    llama4,
    mixtral,
    olmo,
    phi3,
    qwen3_next,
    qwen_moe,
)
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import Model
from loadmaster.architectures.schema import Family
from loadmaster.errors import ConfigError, UnsupportedError

FAMILIES: tuple[Family, ...] = (
    deepseek.FAMILY,
    llama.FAMILY,
    qwen_moe.FAMILY,
    qwen3_next.FAMILY,
    mixtral.FAMILY,
    glm4_moe.FAMILY,
    gpt_oss.FAMILY,
    llama4.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
    granite_moe.FAMILY,
    olmo.FAMILY,
)

MODELS: dict[str, Callable[[Config], Model]] = {
    "deepseek": deepseek.read_model,
    "llama": llama.read_model,
    "qwen_moe": qwen_moe.read_model,
    "mixtral": mixtral.read_model,
    "glm4_moe": glm4_moe.read_model,
    "gpt_oss": gpt_oss.read_model,
    "gemma3": gemma3.read_model,
    "phi3": phi3.read_model,
    "granite_moe": granite_moe.read_model,
    "olmo": olmo.read_model,
}
"""What reads the config of a family that runs, by the family's name."""


class DescribedConfig(dict[str, Any]):
    """A config.json together with its family: for a family that is not registered (yet), as in its tests."""

    def __init__(self, values: Mapping[str, Any], family: Family) -> None:
        super().__init__(values)
        self.family = family


def find_family(config: Mapping[str, Any]) -> Family:
    """Return the family of ``config["architectures"][0]``.

    Raises:
        ConfigError: there is no such key, or the architecture is not known; the hint names those that are.
        FamilyError: the architecture is not known here, and a package that may describe it is broken, or two describe it.
    """
    if isinstance(config, DescribedConfig):
        return config.family
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError(
            "config.json names no architecture",
            hint='"architectures" must be a list with the model class, such as ["LlamaForCausalLM"]',
        )
    for family in FAMILIES:
        if names[0] in family.architectures:
            return family

    from loadmaster.architectures.plugins import find_plugin

    plugin = find_plugin(names[0], known())
    if plugin is not None:
        return plugin
    raise ConfigError(
        f"config.json: the architecture {names[0]!r} is not known",
        hint=f"known: {', '.join(known())}; other packages can add more (docs/guides/add-a-family.md)",
        code="architecture-unknown",
    )


def read_model(config: Mapping[str, Any]) -> Model:
    """Return what computing the model needs to know of its config.json.

    Raises:
        UnsupportedError: the family cannot be run, or the config asks for something that its layers do not compute.
        ConfigError: a value is missing or impossible.
    """
    family = find_family(config)
    reader = MODELS.get(family.name) if family.runs else None
    if reader is None:
        raise UnsupportedError(f"models of the family {family.name} can be planned and loaded, not run yet")
    return reader(family.describe(config))


def known() -> tuple[str, ...]:
    """Return the names of all architectures that this package describes."""
    return tuple(name for family in FAMILIES for name in family.architectures)
