"""The forward pass of GLM-4.5, 4.6 and 4.7."""

from __future__ import annotations

from loadmaster.architectures.glm4_moe import Glm4MoeModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.moe import GatedExperts, MixtureOfExperts, Router
from loadmaster.layers.weight import Params
from loadmaster.models.pre_norm import PreNormLayer


def decoder_layer(model: Glm4MoeModel, params: Params, layer: int) -> PreNormLayer:
    """Return a layer: dense, or routed and shared experts."""
    prefix = f"layers.{layer}"
    attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, None)
    mlp = f"{prefix}.mlp"
    if f"{mlp}.gate.weight" not in params:
        return PreNormLayer(model, params, prefix, attention, GatedMLP(params, mlp))
    experts = MixtureOfExperts(
        Router(model.router, params, f"{mlp}.gate"),
        GatedExperts(params, f"{mlp}.experts"),
        GatedMLP(params, f"{mlp}.shared_experts"),
    )
    return PreNormLayer(model, params, prefix, attention, experts)
