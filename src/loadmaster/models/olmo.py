"""The forward pass of OLMo-2 and OLMo-3."""

from __future__ import annotations

from loadmaster.architectures.olmo import OlmoModel
from loadmaster.layers.attention import Attention
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.norm import Norm
from loadmaster.layers.step import Step
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class DecoderLayer:
    """Attention and a gated feed-forward layer; the output of each is normed, then added to the residual."""

    is_capturable = True

    def __init__(self, model: OlmoModel, params: Params, layer: int) -> None:
        prefix, window = f"layers.{layer}", model.windows[layer]
        spec = model.attention if window is None else model.sliding_attention
        self.attention = Attention(spec, params, f"{prefix}.self_attn", layer, window)
        self.mlp = GatedMLP(params, f"{prefix}.mlp")
        self.post_norm = Norm(model, params.tensor(f"{prefix}.post_attention_layernorm.weight"))
        self.post_mlp_norm = Norm(model, params.tensor(f"{prefix}.post_feedforward_layernorm.weight"))

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return self.attention.remembers()

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        x_TH = x_TH + self.post_norm(self.attention(x_TH, step, cache))
        return {"hidden_states": x_TH + self.post_mlp_norm(self.mlp(x_TH))}
