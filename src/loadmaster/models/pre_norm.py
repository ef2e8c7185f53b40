"""The layer that most families have: norm, attention, norm, feed-forward."""

from __future__ import annotations

from loadmaster.architectures.model import Model
from loadmaster.layers.attention import Attention
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.mlp import FeedForward
from loadmaster.layers.norm import Norm
from loadmaster.layers.step import Step
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class PreNormLayer:
    """Attention and a feed-forward layer, each after a norm and added to the residual."""

    def __init__(self, model: Model, params: Params, prefix: str, attention: Attention, mlp: FeedForward) -> None:
        self.attention, self.mlp = attention, mlp
        self.input_norm = Norm(model, params.tensor(f"{prefix}.input_layernorm.weight"))
        self.post_norm = Norm(model, params.tensor(f"{prefix}.post_attention_layernorm.weight"))

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat the layer."""
        return self.mlp.is_capturable

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return self.attention.remembers()

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        x_TH = x_TH + self.attention(self.input_norm(x_TH), step, cache)
        return {"hidden_states": x_TH + self.mlp(self.post_norm(x_TH))}
