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

from loadmaster.architectures import blocks, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.indexers import draft_indexer, indexer_types, selections
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, Tensor, embedding
from loadmaster.errors import UnsupportedError


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
    kinds["mtp"] = (*kinds[f"sparse/{draft_indexer(c)}"], *blocks.draft(c))

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


def attention(c: Config) -> tuple[Tensor, ...]:
    """Return a layer's attention with its norms: latent, or with heads where the config says so."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if not is_latent(c):
        if c.flag("attention_bias"):
            raise UnsupportedError("config.json: attention_bias is true; attention with biases is not supported yet")
        kv_heads = c.size("num_key_value_heads", heads)
        return (*blocks.norms(hidden), *blocks.attention(hidden, heads, kv_heads, hidden // heads))
    return (Tensor("input_norm", (hidden,)), *mla.latent_attention(c), Tensor("post_norm", (hidden,)))


def is_latent(c: Config) -> bool:
    """Return whether attention is latent."""
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
    unchecked={"DeepseekForCausalLM": OF_VLLM},
)
