"""A key that counts layers or experts has the limit of these, whatever a family calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadmaster import limits
from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.errors import LoadmasterError
from loadmaster.synth import PRESETS
from tests.architectures.test_text_models import MODELS

ABOVE = 5000
CONFIGS: dict[str, Mapping[str, Any]] = {
    **{architecture: {"architectures": [architecture], **config} for architecture, config in MODELS.items()},
    **{name: preset.config_of(tiny=True) for name, preset in PRESETS.items()},
}


def with_one_large(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key of an integer, and the config with `ABOVE` in its place."""
    for key, value in config.items():
        if type(value) is int:
            yield key, {**config, key: ABOVE}
        elif isinstance(value, Mapping):
            for inner, section in with_one_large(value):
                yield inner, {**config, key: section}


def schema_of(config: Mapping[str, Any]) -> Schema | None:
    try:
        family = find_family(config)
        return family.schema(family.describe(config))
    except LoadmasterError:
        return None


def test_no_key_makes_more_layers_or_experts_than_their_limits() -> None:
    beyond = set()
    for config in CONFIGS.values():
        for key, changed in with_one_large(config):
            schema = schema_of(changed)
            if schema is None:
                continue
            experts = max((t.experts for tensors in schema.kinds.values() for t in tensors), default=0)
            if len(schema.layers) > limits.LAYERS.value or experts > limits.EXPERTS.value:
                beyond.add(key)
    assert beyond == set()
