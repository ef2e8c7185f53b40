"""The forward pass of Llama and its dense relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from loadmaster.layers.attention import Attention
from loadmaster.layers.cache import Cache
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class DecoderLayer:
    """Attention and a gated feed-forward layer, each after a norm and added to the residual."""

    def __init__(self, config: Mapping[str, Any], params: Params, layer: int) -> None:
        prefix = f"layers.{layer}"
        self.eps = float(config["rms_norm_eps"])
        self.attention = Attention(config, params, f"{prefix}.self_attn", layer, window(config, layer))
        self.mlp = GatedMLP(params, f"{prefix}.mlp")
        self.input_norm = params.tensor(f"{prefix}.input_layernorm.weight")
        self.post_norm = params.tensor(f"{prefix}.post_attention_layernorm.weight")

    def widths(self) -> dict[tuple[int, str], tuple[int, ...]]:
        """Return what the cache remembers of each token."""
        return self.attention.widths()

    def __call__(self, state: State, positions_T: Tensor, cache: Cache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        x_TH = x_TH + self.attention(rms_norm(x_TH, self.input_norm, self.eps), positions_T, cache)
        return {"hidden_states": x_TH + self.mlp(rms_norm(x_TH, self.post_norm, self.eps))}


def window(config: Mapping[str, Any], layer: int) -> int | None:
    """Return how many tokens a layer attends to at most; None for all.

    Mistral slides everywhere where ``sliding_window`` is set; Qwen only with ``use_sliding_window``, from layer
    ``max_window_layers`` on; ``layer_types`` decides where it is given.
    """
    size = config.get("sliding_window")
    if size is None or not config.get("use_sliding_window", True):
        return None
    types = config.get("layer_types")
    if types:
        slides = types[layer] == "sliding_attention"
    elif "use_sliding_window" in config:
        slides = layer >= int(config.get("max_window_layers", 28))
    else:
        slides = config.get("model_type") == "mistral"
    return int(size) if slides else None
