"""From a plan's parameters to a stage that computes: each family's layer, by the family's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import find_family
from loadmaster.errors import UnsupportedError
from loadmaster.layers.weight import Params
from loadmaster.models import deepseek, llama
from loadmaster.models.layer import Layer
from loadmaster.models.stage import Stage
from loadmaster.plan import ParamSpec

LAYERS: dict[str, Callable[[Mapping[str, Any], Params, int], Layer]] = {
    "deepseek": deepseek.DecoderLayer,
    "llama": llama.DecoderLayer,
}
"""What makes a layer of each family that runs, by the family's name: those that say ``runs``."""


def build_stage(
    config: Mapping[str, Any],
    specs: Sequence[ParamSpec],
    tensors: Mapping[str, Tensor],
    *,
    layers: range,
    first: bool,
    last: bool,
    dtype: torch.dtype,
) -> Stage:
    """Build a stage from the parameters of its rank.

    Raises:
        UnsupportedError: the architecture is described but has no forward pass here, or the config asks for something
            that the pass does not have.
    """
    family = find_family(config)
    maker = LAYERS.get(family.name)
    if maker is None:
        raise UnsupportedError(f"models of the family {family.name} can be planned and loaded, not run yet")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedError(
            f"config.json: hidden_act {config['hidden_act']!r} is not supported", hint="supported: silu"
        )
    schema = family.schema(Config(config))
    params = Params(specs, tensors)
    return Stage(
        config,
        params,
        [maker(config, params, layer) for layer in layers],
        first=first,
        last=last,
        carries_in=() if first else schema.carried_into(layers.start),
        carries_out=() if last else schema.carried_into(layers.stop),
        dtype=dtype,
    )
