"""Kimi-Linear and Kimi-K3's language model: Kimi Delta Attention, latent attention without rotation, routed experts.

Kimi-K3 adds three things: snapshots of the residual (`residual_bank`), experts that read and yield a latent
(``routed_expert_hidden_size``), and a gate for the output of latent attention. The lists of layers count from 1.

Sources: an inventory of Kimi-K3's headers, with the bytes of each kind of layer; ``modeling_kimi_linear.py`` of transformers;
``vllm/models/kimi_k3/nvidia``.
"""

from __future__ import annotations

from dataclasses import replace

from loadmaster.architectures import blocks, kda, mla, residual_bank
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.schema import (
    Family,
    Param,
    Placement,
    Schema,
    Tensor,
    by_rows,
    embedding,
    linear,
)
from loadmaster.architectures.spelling import Spelling
from loadmaster.errors import ConfigError, UnsupportedError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, num_layers = c.size("hidden_size"), c.size("num_hidden_layers")
    for key, only in (("moe_layer_freq", 1), ("num_nextn_predict_layers", 0)):
        if c.size(key, only, least=0) != only:
            raise UnsupportedError(f"config.json: {key} other than {only} is not supported")
    has_bank = residual_bank.every(c) is not None
    mixed = residual_bank.of_layer(hidden) if has_bank else ()
    attentions = {"linear": _linear_attention(c), "latent": _latent_attention(c)}
    mlps = {"dense": _plain(c, *blocks.gated_mlp(hidden, c.size("intermediate_size"))), "sparse": _experts(c)}
    layers = tuple(f"{mlp}/{kind}" for mlp, kind in zip(mlp_types(c, dense=1), _attention_kinds(c), strict=True))
    kinds = {
        f"{mlp}/{kind}": (*blocks.norms(hidden), *mixed, *attentions[kind], *mlps[mlp])
        for mlp in mlps
        for kind in attentions
    }
    return Schema(
        top=(*embedding(c), *(residual_bank.of_model(hidden) if has_bank else ())),
        kinds=kinds,
        layers=layers,
        carries=residual_bank.carried(c, num_layers),
    )


def _attention_kinds(c: Config) -> tuple[str, ...]:
    """Return the attention of each layer. The lists of the config count from 1."""
    num_layers, given = c.size("num_hidden_layers"), c.section("linear_attn_config")
    lists = {"linear": given.sizes("kda_layers"), "latent": given.sizes("full_attn_layers")}
    kinds = {layer: kind for kind, layers in lists.items() for layer in layers}
    if sorted(n for layers in lists.values() for n in layers) != list(range(1, num_layers + 1)):
        raise ConfigError(
            f"config.json: kda_layers and full_attn_layers must give each of {num_layers} layers once, counted from 1"
        )
    return tuple(kinds[layer] for layer in range(1, num_layers + 1))


def _linear_attention(c: Config) -> tuple[Tensor, ...]:
    sizes = c.section("linear_attn_config")
    heads, head, width = (sizes.size(key) for key in ("num_heads", "head_dim", "short_conv_kernel_size"))
    of_release = sizes.flag("use_full_rank_gate")
    # Kimi-Linear stores [1, 1, heads, 1]. Kimi-K3 stores 128 for 96 heads; that the length is rounded up to 128 is inferred.
    decay = (
        Tensor("linear.a_log", (heads,), by_rows(), keep="F32", spare=-heads % 128)
        if of_release
        else Tensor("linear.a_log", (1, 1, heads, 1), Placement(2), keep="F32")
    )
    tensors = kda.kda(c.size("hidden_size"), heads, head, width, whole=("g",) if of_release else ())
    return _plain(c, *(decay if t.name == decay.name else t for t in tensors))


def _latent_attention(c: Config) -> tuple[Tensor, ...]:
    tensors = mla.latent_attention(c)
    if c.flag("mla_use_output_gate"):
        heads, value = c.size("num_attention_heads"), c.size("v_head_dim")
        tensors += (linear("attn.gate", heads * value, c.size("hidden_size"), by_rows(value)),)
    return _plain(c, *tensors)


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, inner, latent = (
        c.size("hidden_size"),
        c.size("moe_intermediate_size"),
        c.optional_size("routed_expert_hidden_size"),
    )
    routed = blocks.experts(hidden, inner, c.size("num_experts"), router_bias=True, latent=latent)
    beside = blocks.gated_mlp(hidden, inner * c.size("num_shared_experts", 1), logical="shared")
    if latent is not None:
        beside += (linear("moe.latent_down", latent, hidden), linear("moe.latent_up", hidden, latent))
        beside += (Tensor("moe.latent_norm", (latent,)),) if c.flag("latent_moe_use_norm") else ()
    return (*routed, *_plain(c, *beside))


def _plain(c: Config, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors of which Kimi-K3 quantises none; only its routed experts are MXFP4."""
    rarely = c.optional_size("routed_expert_hidden_size") is not None
    return tuple(replace(t, rarely=rarely) if t.quantised else t for t in tensors)


_LATENT = {
    "attn.gate": "self_attn.g_proj.weight",
    "moe.latent_down": "{mlp}.routed_expert_down_proj.weight",
    "moe.latent_norm": "{mlp}.routed_expert_norm.weight",
    "moe.latent_up": "{mlp}.routed_expert_up_proj.weight",
}
SPELLING: Spelling = {
    **blocks.TOP_SPELLING,
    **residual_bank.SPELLING,
    **blocks.NORMS_SPELLING,
    **kda.kda_spelling(),
    **mla.SPELLING,
    **{logical: blocks.LAYER + stored.replace("{mlp}", "block_sparse_moe") for logical, stored in _LATENT.items()},
    **blocks.gated_mlp_spelling(),
    **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
    **blocks.gated_mlp_spelling("block_sparse_moe.shared_experts", logical="shared"),
}

FAMILY = Family(
    name="kimi_linear",
    architectures=("KimiLinearForCausalLM",),
    schema=schema,
    spelling=SPELLING,
    native=(
        *blocks.TOP_NATIVE,
        *residual_bank.NATIVE,
        *blocks.NORMS_NATIVE,
        *kda.KDA_NATIVE,
        *mla.NATIVE,
        *(Param("{block}." + stored.replace("{mlp}", "mlp"), (logical,)) for logical, stored in _LATENT.items()),
        *blocks.gated_mlp_native(),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
)
