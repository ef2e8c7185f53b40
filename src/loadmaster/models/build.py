"""From a plan's parameters to a stage that computes: each family's layer, by the type of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loadmaster.architectures.deepseek_model import DeepseekModel
from loadmaster.architectures.gemma3 import Gemma3Model
from loadmaster.architectures.glm4_moe import Glm4MoeModel
from loadmaster.architectures.gpt_oss import GptOssModel
from loadmaster.architectures.granite_moe import GraniteMoeModel
from loadmaster.architectures.llama import LlamaModel
from loadmaster.architectures.mixtral import MixtralModel
from loadmaster.architectures.model import Model
from loadmaster.architectures.olmo import OlmoModel
from loadmaster.architectures.phi3 import Phi3Model
from loadmaster.architectures.qwen_moe import QwenMoeModel
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.layers.linear_forms import Tuner
from loadmaster.layers.weight import Params
from loadmaster.models import deepseek, gemma3, glm4_moe, gpt_oss, granite_moe, llama, mixtral, olmo, phi3, qwen_moe
from loadmaster.models.draft import Draft, DraftLayer
from loadmaster.models.layer import Layer
from loadmaster.models.stage import Stage
from loadmaster.plan import ParamSpec

LAYERS: dict[type[Model], Callable[[Any, Params, int], Layer]] = {
    DeepseekModel: deepseek.DecoderLayer,
    LlamaModel: llama.decoder_layer,
    Gemma3Model: gemma3.DecoderLayer,
    Glm4MoeModel: glm4_moe.decoder_layer,
    GptOssModel: gpt_oss.decoder_layer,
    GraniteMoeModel: granite_moe.DecoderLayer,
    MixtralModel: mixtral.decoder_layer,
    OlmoModel: olmo.DecoderLayer,
    Phi3Model: phi3.decoder_layer,
    QwenMoeModel: qwen_moe.decoder_layer,
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
    num_drafts: int = 0,
    group: TensorGroup | None = None,
) -> Stage:
    """Build a stage from the parameters of its rank; ``model`` is what `read_model` returns.

    ``spare_bytes``: memory for copies of weights that are multiplied faster on a CPU. ``num_drafts`` are the MTP layers of a
    last stage. ``group``: the ranks of the stage, where there are several.

    Raises:
        UnsupportedError: a weight is stored in a format that the layers do not compute with.
    """
    make_layer = LAYERS[type(model)]
    params = Params(specs, tensors, Tuner(spare_bytes) if spare_bytes else None, group)
    return Stage(
        params,
        [make_layer(model, params, layer) for layer in layers],
        first=first,
        last=last,
        carries_in=() if first else _names(model, layers.start),
        carries_out=() if last else _names(model, layers.stop),
        model=model,
        dtype=dtype,
        draft=_draft(model, params, num_drafts, dtype) if num_drafts else None,
    )


def _names(model: Model, layer: int) -> tuple[str, ...]:
    """Return the names of what crosses a cut before a layer."""
    return tuple(f.name for f in model.schema.carried_into(layer))


def _draft(model: Model, params: Params, num_drafts: int, dtype: torch.dtype) -> Draft:
    """Build the MTP layers; their numbers continue those of the model's layers."""
    layers = []
    for i in range(num_drafts):
        number = len(model.schema.layers) + i
        prefix = f"layers.{number}"
        own = params.block(f"mtp.{i}", prefix)
        block = LAYERS[type(model)](model, own, number)
        shares = isinstance(model, DeepseekModel) and model.drafts_share_selection
        repeated = block.sharing() if shares and isinstance(block, deepseek.DecoderLayer) else block
        layers.append(DraftLayer(model, own, prefix, block, repeated, dtype))
    return Draft(layers)
