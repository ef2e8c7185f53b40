"""The forward pass of Mixtral and MiniMax-M2."""

from __future__ import annotations

from loadmaster.architectures.mixtral import MixtralModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.moe import GatedExperts, MixtureOfExperts, Router
from loadmaster.layers.weight import Params
from loadmaster.models.pre_norm import PreNormLayer


def decoder_layer(model: MixtralModel, params: Params, layer: int) -> PreNormLayer:
    """Return a layer: attention and experts."""
    prefix = f"layers.{layer}"
    attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, model.window)
    router = Router(model.router, params, f"{prefix}.mlp.gate")
    experts = MixtureOfExperts(router, GatedExperts(params, f"{prefix}.mlp.experts"))
    return PreNormLayer(model, params, prefix, attention, experts)
