"""The forward pass of gpt-oss."""

from __future__ import annotations

from loadmaster.architectures.gpt_oss import GptOssModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.moe import ClampedExperts, MixtureOfExperts, Router
from loadmaster.layers.weight import Params
from loadmaster.models.pre_norm import PreNormLayer


def decoder_layer(model: GptOssModel, params: Params, layer: int) -> PreNormLayer:
    """Return a layer: attention with sinks, and experts with biases."""
    prefix = f"layers.{layer}"
    attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, model.windows[layer])
    router = Router(model.router, params, f"{prefix}.mlp.router")
    experts = ClampedExperts(model.activation, params, f"{prefix}.mlp.experts")
    return PreNormLayer(model, params, prefix, attention, MixtureOfExperts(router, experts))
