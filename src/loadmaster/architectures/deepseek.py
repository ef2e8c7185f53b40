"""DeepSeek, from MoE and V2 to V3.2, and its relatives: R1, Moonlight, Kimi-K2, GLM-5, GLM-5.1, GLM-5.2, GLM-5.3.

Latent attention (MLA), a sparse-attention indexer on some or all layers (V3.2, GLM), dense layers first and then routed
experts, and MTP layers stored after the decoder layers. GLM's MTP layer shares the model's embedding and head;
DeepSeek's stores its own copies. The headers decide. Queries may be uncompressed (``q_lora_rank`` null: V2-Lite, Moonlight),
and DeepSeek-MoE and DeepSeek-OCR have heads without a latent (``use_mla`` false). V2 and before have a
correction bias only with ``noaux_tc`` (VL2).

Sources: the released configs and headers; ``modeling_deepseek_v3.py``, ``modeling_deepseek_v32.py`` and
``modeling_glm_moe_dsa.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from loadmaster.architectures import blocks, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import IndexerSpec, LatentSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope
from loadmaster.architectures.schema import (
    Carried,
    Family,
    Schema,
    Tensor,
    embedding,
)
from loadmaster.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekModel(Model):
    """Latent attention and experts.

    ``indexer_types`` gives the type of each layer, MTP layers included; ``indexer`` is None if no layer has one.
    ``drafts_share_selection``: an MTP layer that is run several times in a row selects tokens the first time only.
    """

    attention: LatentSpec
    indexer: IndexerSpec | None
    indexer_types: tuple[str, ...]
    drafts_share_selection: bool
    router: RouterSpec


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    if c.size("moe_layer_freq", 1) != 1:
        raise UnsupportedError("config.json: moe_layer_freq other than 1 is not supported")
    indexers = indexer_types(c)
    kinds: dict[str, tuple[Tensor, ...]] = {}
    for mlp in ("dense", "sparse"):
        for indexer in ("full", "shared", "none"):
            parts = (*attention(c), *(mla.indexer(c) if indexer == "full" else ()))
            kinds[f"{mlp}/{indexer}"] = (*parts, *(dense(c) if mlp == "dense" else experts(c)))
    kinds["mtp"] = (*kinds[f"sparse/{_draft_indexer(c)}"], *blocks.draft(c))

    return Schema(
        top=embedding(c),
        kinds=kinds,
        layers=tuple(f"{mlp}/{indexer}" for mlp, indexer in zip(mlp_types(c), indexers, strict=True)),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
        carries=selections(c, indexers),
    )


def mlp_types(c: Config, *, dense: int = 0) -> tuple[str, ...]:
    """Return for each layer whether it is ``dense`` or ``sparse``: from the list, else the first ones are dense.

    ``dense`` is how many, where the config does not say it.
    """
    num_layers = c.size("num_hidden_layers")
    num_dense = min(c.size("first_k_dense_replace", dense, least=0), num_layers)
    default = ("dense",) * num_dense + ("sparse",) * (num_layers - num_dense)
    return c.types("mlp_layer_types", ("dense", "sparse"), num_layers, default)


def selections(c: Config, indexers: Sequence[str]) -> tuple[tuple[Carried, ...], ...]:
    """Return for each layer the selection of tokens that it takes from an earlier one; nothing where it makes its own."""
    selecting = accumulate((0 if kind == "shared" else i for i, kind in enumerate(indexers)), max)
    selection = Carried("topk_indices", (c.size("index_topk", 1),), "I64")
    return tuple((replace(selection, source=source),) if source < i else () for i, source in enumerate(selecting))


def indexer_types(c: Config) -> tuple[str, ...]:
    """Return for each layer whether it selects tokens (``full``), reuses the last selection (``shared``) or has ``none``.

    The rule is that of ``GlmMoeDsaConfig``: an explicit list, else a pattern of F and S, else a frequency and an offset.
    """
    num_layers = c.size("num_hidden_layers")
    if c.values.get("index_topk") is None:
        return ("none",) * num_layers
    types = c.strings("indexer_types")
    pattern = c.values.get("index_topk_pattern")
    if not types and isinstance(pattern, str):
        types = tuple({"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern)
    elif not types:
        freq, offset = c.size("index_topk_freq", 1), c.size("index_skip_topk_offset", 2, least=0)
        types = tuple("full" if max(i - offset + 1, 0) % freq == 0 else "shared" for i in range(num_layers))
    if len(types) < num_layers or not set(types) <= {"full", "shared"}:
        raise ConfigError(f"config.json: indexer_types must give full or shared for each of {num_layers} layers")
    if types[0] == "shared":
        raise ConfigError("config.json: indexer_types begins with shared, but no earlier layer selects tokens")
    return types[:num_layers]


def _draft_indexer(c: Config) -> str:
    """Return the type of the MTP layers: they have an indexer of their own in every model with indexers."""
    return "none" if c.values.get("index_topk") is None else "full"


def read_model(c: Config) -> DeepseekModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    require(c, "scoring_func", "sigmoid")
    require(c, "topk_method", "noaux_tc")
    if not _is_latent(c) or c.values.get("q_lora_rank") is None:
        what = "q_lora_rank is null" if _is_latent(c) else "there is no latent attention"
        raise UnsupportedError(f"config.json: {what}; such models can be planned and loaded, not run yet")
    norm_eps, rope_dim = c.number("rms_norm_eps"), c.size("qk_rope_head_dim")
    logical = schema(c)
    return DeepseekModel(
        schema=logical,
        norm_eps=norm_eps,
        attention=LatentSpec(
            num_heads=c.size("num_attention_heads"),
            nope_dim=c.size("qk_nope_head_dim"),
            rope_dim=rope_dim,
            value_dim=c.size("v_head_dim"),
            q_rank=c.size("q_lora_rank"),
            kv_rank=c.size("kv_lora_rank"),
            norm_eps=norm_eps,
            rope=read_rope(c),
            interleaved=c.flag("rope_interleave", True),
        ),
        indexer=_indexer_spec(c, rope_dim),
        indexer_types=(*indexer_types(c), *(_draft_indexer(c),) * len(logical.drafts)),
        drafts_share_selection=c.flag("index_share_for_mtp_iteration"),
        router=RouterSpec(
            topk=c.size("num_experts_per_tok"),
            scoring="sigmoid",
            num_groups=c.size("n_group", 1, least=0) or 1,
            topk_groups=c.size("topk_group", 1, least=0) or 1,
            normalise=c.flag("norm_topk_prob", True),
            scaling=c.number("routed_scaling_factor", 1.0),
        ),
    )


def _indexer_spec(c: Config, rope_dim: int) -> IndexerSpec | None:
    if c.values.get("index_topk") is None:
        return None
    # GLM rotates neighbours; DeepSeek-V3.2 rotates one of each half, unlike in its main attention
    interleaved = c.flag("indexer_rope_interleave", c.values.get("model_type") == "glm_moe_dsa")
    return IndexerSpec(c.size("index_topk"), c.size("index_n_heads"), c.size("index_head_dim"), rope_dim, interleaved)


def attention(c: Config) -> tuple[Tensor, ...]:
    """Return a layer's attention with its norms: latent, or with heads where the config says so."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if not _is_latent(c):
        if c.flag("attention_bias"):
            raise UnsupportedError("config.json: attention_bias is true; attention with biases is not supported yet")
        kv_heads = c.size("num_key_value_heads", heads)
        return (*blocks.norms(hidden), *blocks.attention(hidden, heads, kv_heads, hidden // heads))
    return (Tensor("input_norm", (hidden,)), *mla.latent_attention(c), Tensor("post_norm", (hidden,)))


def _is_latent(c: Config) -> bool:
    return c.flag("use_mla", c.values["architectures"][0] != "DeepseekForCausalLM")


def dense(c: Config) -> tuple[Tensor, ...]:
    """Return the MLP of a dense layer."""
    return blocks.gated_mlp(c.size("hidden_size"), c.size("intermediate_size"))


_UNCORRECTED = (
    *("DeepseekForCausalLM", "DeepseekV2ForCausalLM"),
    *("MistralLarge3ForCausalLM", "Mistral4ForCausalLM"),  # `mistral_large.py`
)
"""Architectures whose routers have a correction bias only with ``noaux_tc``."""


def experts(c: Config) -> tuple[Tensor, ...]:
    """Return router, routed experts and shared experts of a sparse layer."""
    hidden, inner = c.size("hidden_size"), c.size("moe_intermediate_size")
    corrected = c.values["architectures"][0] not in _UNCORRECTED or c.values.get("topk_method") == "noaux_tc"
    return (
        *blocks.experts(hidden, inner, c.size("n_routed_experts"), router_bias=corrected),
        *blocks.gated_mlp(hidden, inner * c.size("n_shared_experts", 1), logical="shared"),
    )


SPELLING = {
    **blocks.TOP_SPELLING,
    **blocks.NORMS_SPELLING,
    **blocks.ATTENTION_SPELLING,
    **mla.SPELLING,
    **mla.INDEXER_SPELLING,
    **blocks.gated_mlp_spelling(),
    **blocks.experts_spelling(),
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **blocks.DRAFT_SPELLING,
}

NATIVE = (
    *blocks.TOP_NATIVE,
    *blocks.NORMS_NATIVE,
    *dict.fromkeys((*blocks.ATTENTION_NATIVE, *mla.NATIVE)),  # both have the output
    *mla.INDEXER_NATIVE,
    *blocks.gated_mlp_native(),
    *blocks.EXPERTS_NATIVE,
    *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    *blocks.DRAFT_NATIVE,
)

FAMILY = Family(
    name="deepseek",
    architectures=(
        "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "GlmMoeDsaForCausalLM",
        "KimiK2ForCausalLM",
        "KimiK2",
    ),
    schema=schema,
    spelling=SPELLING,
    variants=({**SPELLING, **blocks.stacked_experts_spelling()},),
    native=NATIVE,
    waived=(blocks.INV_FREQ,),
    runs=True,
    unchecked={"DeepseekForCausalLM": "transformers has no class of it; its names are those of vLLM's loader"},
)
