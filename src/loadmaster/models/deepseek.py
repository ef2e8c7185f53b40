"""The forward pass of DeepSeek-V3, V3.2, Kimi-K2 and GLM-5."""

from __future__ import annotations

from copy import copy

from loadmaster.architectures.deepseek_model import DeepseekModel
from loadmaster.layers.kv_cache import CacheKey, KVCache, Remembered
from loadmaster.layers.mla import LatentAttention
from loadmaster.layers.mlp import GatedMLP
from loadmaster.layers.moe import GatedExperts, MixtureOfExperts, Router
from loadmaster.layers.norm import rms_norm
from loadmaster.layers.step import Step
from loadmaster.layers.weight import Params
from loadmaster.models.layer import State


class DecoderLayer:
    """Latent attention and a feed-forward layer (dense, or experts), each after a norm and added to the residual."""

    def __init__(self, model: DeepseekModel, params: Params, layer: int) -> None:
        prefix = f"layers.{layer}"
        self.eps = model.norm_eps
        kind = model.indexer_types[layer]
        self.attention = LatentAttention(
            model.attention,
            params,
            f"{prefix}.self_attn",
            layer,
            model.indexer if kind == "full" else None,
            shares=kind == "shared",
        )
        sparse = f"{prefix}.mlp.gate.weight" in params
        self.mlp = _experts(model, params, f"{prefix}.mlp") if sparse else GatedMLP(params, f"{prefix}.mlp")
        self.input_norm = params.tensor(f"{prefix}.input_layernorm.weight")
        self.post_norm = params.tensor(f"{prefix}.post_attention_layernorm.weight")

    @property
    def is_capturable(self) -> bool:
        """Whether, on a GPU, a CUDA graph can repeat the layer."""
        return self.attention.is_capturable and self.mlp.is_capturable

    def sharing(self) -> DecoderLayer:
        """Return the same layer without its indexer: it takes the tokens selected by an earlier one."""
        layer = copy(self)
        layer.attention = copy(self.attention)
        layer.attention.indexer = None
        return layer

    def remembers(self) -> dict[CacheKey, Remembered]:
        """Return what the cache stores of each token."""
        return self.attention.remembers()

    def __call__(self, state: State, step: Step, cache: KVCache) -> State:
        """Return the state after the layer."""
        x_TH = state["hidden_states"]
        normed_TH = rms_norm(x_TH, self.input_norm, self.eps)
        out_TH, topk_TK = self.attention(normed_TH, step, cache, state.get("topk_indices"))
        x_TH = x_TH + out_TH
        x_TH = x_TH + self.mlp(rms_norm(x_TH, self.post_norm, self.eps))
        return {"hidden_states": x_TH} if topk_TK is None else {"hidden_states": x_TH, "topk_indices": topk_TK}


def _experts(model: DeepseekModel, params: Params, prefix: str) -> MixtureOfExperts:
    return MixtureOfExperts(
        Router(model.router, params, f"{prefix}.gate"),
        GatedExperts(params, f"{prefix}.experts"),
        GatedMLP(params, f"{prefix}.shared_experts"),
    )
