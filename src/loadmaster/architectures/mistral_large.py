"""Mistral-Large-3, Mistral-4 and Mistral-Large-4: latent attention and routed experts, also in Mistral's own names.

Large-3 and Mistral-4 have DeepSeek-V3's tensors without a correction bias. Large-3 is published in Mistral's own names, without a
prefix; Mistral-4 in those of transformers, with all experts of a layer in one tensor. In Large-4 some layers read the KV cache
of an earlier layer (``kv_source_layers``) and reuse its choice of tokens (``indexer_types``). Every fourth layer has no rotary
embedding: its latent has no rotary part, and its keys are whole.

Sources: ``mistral4``, ``mistral_large4`` and ``conversion_mapping.py`` of transformers 5.24; ``mistral_large_3.py`` in
``vllm/model_executor/models``; ``vllm/transformers_utils/configs/mistral.py``.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from loadmaster.architectures import blocks, deepseek, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
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
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError

_LAYER: Final = "layers.{layer}."
_MLPS: Final = {"mlp": "feed_forward", "moe": "experts.{expert}", "shared": "shared_experts"}
_ATTENTION: Final = {
    **{"attn.q_direct": "wq", "attn.kv_direct": "wkv_a_with_mqa", "attn.kv_a": "wkv_a_with_mqa", "attn.o": "wo"},
    **{f"attn.{name}": name for name in ("q_a_norm", "kv_a_norm")},
    **{f"attn.{name}": f"w{name}" for name in ("q_a", "q_b", "kv_b")},
}
NAMES: Final[Spelling] = {
    "embed": "tok_embeddings.weight",
    "norm": "norm.weight",
    "head": "output.weight",
    "input_norm": _LAYER + "attention_norm.weight",
    "post_norm": _LAYER + "ffn_norm.weight",
    **{name: f"{_LAYER}attention.{stored}.weight" for name, stored in _ATTENTION.items()},
    "moe.router": _LAYER + "gate.weight",
    **{f"{logical}.gate": f"{_LAYER}{stored}.w1.weight" for logical, stored in _MLPS.items()},
    **{f"{logical}.down": f"{_LAYER}{stored}.w2.weight" for logical, stored in _MLPS.items()},
    **{f"{logical}.up": f"{_LAYER}{stored}.w3.weight" for logical, stored in _MLPS.items()},
}
"""Mistral's own names."""

_VISION: Final = (
    r"(vision_encoder|vision_language_adapter|patch_merger|pre_mm_projector_norm)\..*",
    LANGUAGE_ONLY,
)

MLA = Family(
    name="mistral_large",
    architectures=("Mistral4ForCausalLM", "MistralLarge3ForCausalLM"),
    schema=deepseek.schema,
    spelling={**deepseek.SPELLING, **blocks.stacked_experts_spelling()},
    variants=(deepseek.SPELLING, NAMES),
    native=deepseek.NATIVE,
    waived=(blocks.INV_FREQ, _VISION),
    unchecked={"MistralLarge3ForCausalLM": "transformers has no class of it; its names are those of vLLM's loader"},
)


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
    sources, indexers = _kv_sources(c, num_layers), deepseek.indexer_types(c)
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
        carries=deepseek.selections(c, indexers),
        joined=joined(sources, "the KV cache"),
    )


def _kv_sources(c: Config, num_layers: int) -> tuple[int, ...]:
    """Return for each layer the layer whose KV cache it reads."""
    sources = c.sizes("kv_source_layers") or tuple(range(num_layers))
    if len(sources) != num_layers or any(s > layer or sources[s] != s for layer, s in enumerate(sources)):
        raise ConfigError(
            f"config.json: kv_source_layers must give for each of {num_layers} layers itself, or an earlier layer that gives "
            "itself"
        )
    return sources


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

LARGE4 = Family(
    name="mistral_large4",
    architectures=("MistralLarge4ForConditionalGeneration",),
    schema=schema,
    spelling={**NAMES, **{name: _LAYER + stored for name, stored in _MORE.items()}, "rotary.alpha": "lerope.alpha"},
    native=(
        *deepseek.NATIVE,
        *(Param("{block}." + _MORE[name].replace("attention.", "self_attn."), (name,)) for name in _NEW),
        Param("rotary.alpha", ("rotary.alpha",), stage="every"),
    ),
    waived=(_VISION,),
    section="text_config",
    unchecked={
        "MistralLarge4ForConditionalGeneration": "names and shapes are those of transformers' class; number formats, and "
        "the names of scales and of the draft, were not seen in a release"
    },
)
