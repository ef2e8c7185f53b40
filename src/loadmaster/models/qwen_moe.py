"""The forward pass of Qwen2-MoE and Qwen3-MoE."""

from __future__ import annotations

from loadmaster.architectures.qwen_moe import QwenMoeModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.moe import GatedExperts, MixtureOfExperts, Router, SharedExpert
from loadmaster.layers.weight import Params
from loadmaster.models.pre_norm import PreNormLayer


def decoder_layer(model: QwenMoeModel, params: Params, layer: int) -> PreNormLayer:
    """Return a layer: experts, with Qwen2's shared one, or a dense feed-forward layer."""
    prefix = f"layers.{layer}"
    attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, model.window)
    mlp = f"{prefix}.mlp"
    if f"{mlp}.gate.weight" not in params:
        return PreNormLayer(model, params, prefix, attention, GatedMLP(params, mlp))
    shared = SharedExpert(params, f"{mlp}.shared_expert") if f"{mlp}.shared_expert_gate.weight" in params else None
    experts = MixtureOfExperts(
        Router(model.router, params, f"{mlp}.gate"), GatedExperts(params, f"{mlp}.experts"), shared
    )
    return PreNormLayer(model, params, prefix, attention, experts)
