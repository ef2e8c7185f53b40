"""From a plan's parameters to a stage that computes: each family's layer, by the type of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loadmaster.architectures.deepseek import DeepseekModel
from loadmaster.architectures.llama import LlamaModel
from loadmaster.architectures.model import Model
from loadmaster.layers.linear_forms import Tuner
from loadmaster.layers.weight import Params
from loadmaster.models import deepseek, llama
from loadmaster.models.layer import Layer
from loadmaster.models.stage import Stage
from loadmaster.plan import ParamSpec

LAYERS: dict[type[Model], Callable[[Any, Params, int], Layer]] = {
    DeepseekModel: deepseek.DecoderLayer,
    LlamaModel: llama.DecoderLayer,
}
"""What makes a layer of each family that runs, by what the family reads from a config."""


def build_stage(
    model: Model,
    specs: Sequence[ParamSpec],
    tensors: Mapping[str, Tensor],
    *,
    layers: range,
    first: bool,
    last: bool,
    dtype: torch.dtype,
    spare_bytes: int = 0,
) -> Stage:
    """Build a stage from the parameters of its rank; ``model`` is what `read_model` returns.

    ``spare_bytes``: memory for copies of weights that are multiplied faster on a CPU.

    Raises:
        UnsupportedError: a weight is stored in a format that the layers do not compute with.
    """
    make_layer = LAYERS[type(model)]
    params = Params(specs, tensors, Tuner(spare_bytes) if spare_bytes else None)
    return Stage(
        params,
        [make_layer(model, params, layer) for layer in layers],
        first=first,
        last=last,
        carries_in=() if first else model.schema.carried_into(layers.start),
        carries_out=() if last else model.schema.carried_into(layers.stop),
        model=model,
        dtype=dtype,
    )
