"""The forward pass of Llama and its dense relatives."""

from __future__ import annotations

from loadmaster.architectures.llama import LlamaModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.weight import Params
from loadmaster.models.pre_norm import PreNormLayer


def decoder_layer(model: LlamaModel, params: Params, layer: int) -> PreNormLayer:
    """Return a layer: attention and a gated feed-forward layer."""
    prefix = f"layers.{layer}"
    attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, model.windows[layer])
    return PreNormLayer(model, params, prefix, attention, GatedMLP(params, f"{prefix}.mlp"))
