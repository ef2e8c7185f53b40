"""The forward pass of Llama and its dense relatives."""

from __future__ import annotations

from loadmaster.architectures.llama import LlamaModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.step import Step
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class DecoderLayer:
    """Attention and a gated feed-forward layer, each after a norm and added to the residual."""

    def __init__(self, model: LlamaModel, params: Params, layer: int) -> None:
        prefix = f"layers.{layer}"
        self.eps = model.norm_eps
        self.attention = Attention(model.attention, params, f"{prefix}.self_attn", layer, model.windows[layer])
        self.mlp = GatedMLP(params, f"{prefix}.mlp")
        self.input_norm = params.tensor(f"{prefix}.input_layernorm.weight")
        self.post_norm = params.tensor(f"{prefix}.post_attention_layernorm.weight")

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return self.attention.remembers()

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        x_TH = x_TH + self.attention(rms_norm(x_TH, self.input_norm, self.eps), step, cache)
        return {"hidden_states": x_TH + self.mlp(rms_norm(x_TH, self.post_norm, self.eps))}
