"""The forward pass of Granite-MoE."""

from __future__ import annotations

from loadmaster.architectures.granite_moe import GraniteMoeModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.moe import GatedExperts, MixtureOfExperts, Router
from loadmaster.layers.norm import Norm
from loadmaster.layers.step import Step
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class DecoderLayer:
    """Attention and experts, each after a norm; a multiple of their output is added to the residual."""

    def __init__(self, model: GraniteMoeModel, params: Params, layer: int) -> None:
        prefix = f"layers.{layer}"
        self.residual_scale = model.residual_scale
        self.attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, None)
        shared = f"{prefix}.mlp.shared_mlp"
        self.experts = MixtureOfExperts(
            Router(model.router, params, f"{prefix}.mlp.gate"),
            GatedExperts(params, f"{prefix}.mlp.experts"),
            GatedMLP(params, shared) if f"{shared}.down_proj.weight" in params else None,
        )
        self.input_norm = Norm(model, params.tensor(f"{prefix}.input_layernorm.weight"))
        self.post_norm = Norm(model, params.tensor(f"{prefix}.post_attention_layernorm.weight"))

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat the layer."""
        return self.experts.is_capturable

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return self.attention.remembers()

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        x_TH = x_TH + self.attention(self.input_norm(x_TH), step, cache) * self.residual_scale
        return {"hidden_states": x_TH + self.experts(self.post_norm(x_TH)) * self.residual_scale}
