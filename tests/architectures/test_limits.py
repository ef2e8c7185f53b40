"""A key that counts layers or experts has the limit of these, whatever a family calls it; and no tensor is empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loadmaster import limits
from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LoadmasterError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from loadmaster.synth import PRESETS
from loadmaster.testing.plans import write_checkpoint
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


@pytest.mark.parametrize(
    ("architecture", "key"), [("SolarForCausalLM", "num_attention_heads"), ("DbrxForCausalLM", "n_heads")]
)
def test_heads_of_no_elements_are_refused(architecture: str, key: str, tmp_path: Path) -> None:
    """64 hidden elements over 1,000 heads, in any layout."""
    config = {"architectures": [architecture], "dtype": "bfloat16", **CONFIGS[architecture]}
    write_checkpoint(find_family(config), config, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 1000}))
    for ranks in (1, 2):
        with pytest.raises(ConfigError, match=r"config.json describes attn.q without elements: \[0, "):
            build_plan(open_checkpoint(tmp_path), ParallelLayout(1, ranks))
