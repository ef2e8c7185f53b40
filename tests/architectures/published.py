"""Names and shapes of a transformers model on the meta device, and those that a family's tables give for its config."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from loadmaster.architectures.config import Config
from loadmaster.architectures.items import items
from loadmaster.architectures.registry import find_family, language_config

Shapes = dict[str, tuple[int, ...]]


def described(config: dict[str, Any], spelling: int = 0) -> Shapes:
    """Every stored tensor that our tables give for ``config`` (unquantised), by name."""
    family = find_family(config)
    schema = family.schema(Config(language_config(family, config)))
    kinds = list(enumerate((*schema.layers, *schema.drafts)))
    found = {}
    for layer, tensors in [(-1, schema.top), *((layer, schema.kinds[kind]) for layer, kind in kinds)]:
        for item in items(tensors, family.spellings[spelling]):
            for expert in range(item.members) if item.members else (None,):
                found[item.stored_name("weight", layer, expert)] = item.plain_shape
    return found


def published(config: PretrainedConfig, auto: Any = AutoModelForCausalLM) -> Shapes:
    """Every parameter and buffer that transformers' own model would save, under its names *inside* the model."""
    with torch.device("meta"):
        model = auto.from_config(config)
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}
