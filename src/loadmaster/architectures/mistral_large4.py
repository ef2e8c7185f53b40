"""Mistral-Large-4: latent attention of which some layers have no rotation, and some no KV cache of their own.

Some layers read the KV cache of an earlier layer (``kv_source_layers``) and reuse its choice of tokens (``indexer_types``). Every
fourth layer has no rotary embedding: its latent has no rotary part, and its keys are whole. The names are Mistral's own.

Sources: ``mistral_large4`` of transformers 5.24; ``vllm/transformers_utils/configs/mistral.py``.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from loadmaster.architectures import blocks, deepseek, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.indexers import indexer_types, selections
from loadmaster.architectures.mistral_large import NAMES
from loadmaster.architectures.mistral_names import LAYER, VISION
from loadmaster.architectures.schema import (
    Family,
    Param,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    embedding,
    joined,
    linear,
)
from loadmaster.architectures.shared_kv import given_sources
from loadmaster.errors import ConfigError

_DEFAULTS: Final = {
    **{"hidden_size": 6144, "intermediate_size": 24576, "moe_intermediate_size": 6144, "vocab_size": 204800},
    **{"num_hidden_layers": 72, "num_attention_heads": 64, "n_routed_experts": 128, "first_k_dense_replace": 1},
    **{"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 128},
    **{"index_topk": 2048, "index_head_dim": 128, "index_n_heads": 32},
}
"""Of ``MistralLarge4TextConfig``."""


def schema(c: Config) -> Schema:
    """Return the logical tensors of a Mistral-Large-4."""
    c = Config({**_DEFAULTS, **c.values})
    hidden, inner, num_layers = c.size("hidden_size"), c.size("moe_intermediate_size"), c.size("num_hidden_layers")
    shared = blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared")
    mlps = {
        "dense": deepseek.dense(c),
        "sparse": (*blocks.experts(hidden, inner, c.size("n_routed_experts")), *shared),
    }
    sources, indexers = given_sources(c, num_layers), indexer_types(c)
    rotary = c.sizes("no_rope_layers") or tuple((layer + 1) % 4 for layer in range(num_layers))
    if len(rotary) < num_layers:
        raise ConfigError(f"config.json: no_rope_layers must give 0 or 1 for each of {num_layers} layers")
    names = {
        "RoPE": rotary,
        "own KV": [source == layer for layer, source in enumerate(sources)],
        "indexer": [kind == "full" for kind in indexers],
    }
    parts = [frozenset(n for n, of in names.items() if of[layer]) for layer in range(num_layers)]
    layers = tuple(", ".join((mlp, *sorted(p))) for mlp, p in zip(deepseek.mlp_types(c), parts, strict=True))
    return Schema(
        top=(*embedding(c), Tensor("rotary.alpha", (c.size("qk_rope_head_dim") // 2,), usual=("F32",))),
        kinds={k: (*_attention(c, p), *mlps[k.partition(",")[0]]) for k, p in zip(layers, parts, strict=True)},
        layers=layers,
        carries=selections(c, indexers),
        joined=joined(sources, "the KV cache"),
    )


def _attention(c: Config, has: Set[str]) -> tuple[Tensor, ...]:
    hidden, heads, rank, value = (
        c.size(key) for key in ("hidden_size", "num_attention_heads", "kv_lora_rank", "v_head_dim")
    )
    nope, rope = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    keys, more = (nope, rope) if "RoPE" in has else (nope + rope, 0)
    own = (linear("attn.kv_direct", rank + more, hidden), Tensor("attn.kv_a_norm", (rank,)))
    scaling = (Tensor(f"attn.scaling_{name}", (heads,), by_rows(), usual=("F32",)) for name in ("scale", "bias"))
    return (
        *blocks.norms(hidden),
        linear("attn.q_direct", heads * (nope + rope), hidden, by_rows(nope + rope)),
        *(own if "own KV" in has else ()),
        linear("attn.kv_b", heads * (keys + value), rank, by_rows(keys + value)),
        linear("attn.o", hidden, heads * value, by_columns(value)),
        *scaling,
        *(_indexer(c, hidden) if "indexer" in has else ()),
    )


def _indexer(c: Config, hidden: int) -> tuple[Tensor, ...]:
    heads = c.size("index_n_heads")
    norms = [Tensor(f"indexer.q_norm{suffix}", (hidden,), usual=("F32",)) for suffix in ("", "_bias")]
    scaling = [Tensor(f"indexer.scaling_{name}", (heads,), usual=("F32",)) for name in ("scale", "bias")]
    return (*mla.indexer(c, hidden), *norms, *scaling)


_INDEXER: Final = {
    **{"wq_b": "wq_b.weight", "wk": "wk.weight", "weights_proj": "weights_proj.weight"},
    **{"k_norm": "k_norm.weight", "k_norm_bias": "k_norm.bias"},
    **{"q_norm": "q_input_norm.weight", "q_norm_bias": "q_input_norm.bias"},
    **{"scaling_scale": "ssmax_scaling.s", "scaling_bias": "ssmax_scaling.b"},
}
_MORE: Final = {
    **{"attn.scaling_scale": "attention.ssmax_scaling.s", "attn.scaling_bias": "attention.ssmax_scaling.b"},
    **{f"indexer.{name}": f"attention.indexer.{stored}" for name, stored in _INDEXER.items()},
}
_NEW: Final = [name for name in _MORE if name in ("indexer.q_norm", "indexer.q_norm_bias") or "scaling" in name]

FAMILY = Family(
    name="mistral_large4",
    architectures=("MistralLarge4ForConditionalGeneration",),
    schema=schema,
    spelling={**NAMES, **{name: LAYER + stored for name, stored in _MORE.items()}, "rotary.alpha": "lerope.alpha"},
    native=(
        *deepseek.NATIVE,
        *(Param("{block}." + _MORE[name].replace("attention.", "self_attn."), (name,)) for name in _NEW),
        Param("rotary.alpha", ("rotary.alpha",), stage="every"),
    ),
    waived=(VISION,),
    section="text_config",
    unchecked={
        "MistralLarge4ForConditionalGeneration": "names and shapes are those of transformers' class; number formats, and "
        "the names of scales and of the draft, were not seen in a release"
    },
)
