"""Falcon, Bloom and GPT-NeoX (Pythia): q, k and v alternate by head, or in Falcon-40B and later by group of heads.

Falcon-7B has one head of keys and values, stored after all of q: one group. Published Blooms have no ``transformer.`` before
their names.

Sources: ``modeling_falcon.py``, ``modeling_bloom.py`` and ``modeling_gpt_neox.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import MASKS, NATIVE, grouped, model, modules, normed, packed_qkv
from loadmaster.architectures.schema import Family, Schema
from loadmaster.architectures.spelling import Spelling, respelled


def falcon(c: Config) -> Schema:
    """Return the logical tensors of a Falcon: 7B has one head of keys and values, 40B and later have groups of heads."""
    hidden = c.size("hidden_size", c.optional_size("n_embed"))
    heads = c.size("num_attention_heads", c.optional_size("n_head"))
    head, bias = hidden // heads, c.flag("bias")
    if c.flag("new_decoder_architecture"):
        groups = c.size("num_kv_heads", c.optional_size("n_head_kv") or heads)
        attention = blocks.attention(hidden, heads, groups, head, bias=bias, out_bias=bias, groups=groups)
        norms: tuple[str, ...] = (
            ("attn_norm", "mlp_norm") if c.size("num_ln_in_parallel_attn", 2) == 2 else ("input_norm",)
        )
    else:
        norms = ("input_norm",) if c.flag("parallel_attn", True) else ("input_norm", "post_norm")
        attention = (
            blocks.attention(hidden, heads, 1, head, bias=bias, out_bias=bias)
            if c.flag("multi_query", True)
            else grouped(hidden, heads, 3 * head, head, bias=bias, out_bias=bias)
        )
    inner = c.size("ffn_hidden_size", 4 * hidden)
    layer = (*normed(hidden, *norms), *attention, *blocks.plain_mlp(hidden, inner, bias=bias))
    return model(c, hidden, layer, c.size("num_hidden_layers", c.optional_size("n_layer")), tied=True)


def bloom(c: Config) -> Schema:
    """Return the logical tensors of a Bloom, which norms its embedding too."""
    hidden = c.size("hidden_size", c.optional_size("n_embed"))
    heads = c.size("n_head", c.optional_size("num_attention_heads"))
    num_layers = c.size("n_layer", c.optional_size("num_hidden_layers"))
    head = hidden // heads
    layer = (
        *normed(hidden, "input_norm", "post_norm"),
        *grouped(hidden, heads, 3 * head, head, bias=True, out_bias=True),
        *blocks.plain_mlp(hidden, 4 * hidden, bias=True),
    )
    return model(c, hidden, layer, num_layers, *normed(hidden, "embed_norm"), tied=True)


def neox(c: Config) -> Schema:
    """Return the logical tensors of a GPT-NeoX (Pythia)."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    head, bias = hidden // heads, c.flag("attention_bias", True)
    layer = (
        *normed(hidden, "input_norm", "post_norm"),
        *grouped(hidden, heads, 3 * head, head, bias=bias, out_bias=bias),
        *blocks.plain_mlp(hidden, c.size("intermediate_size"), bias=True),
    )
    return model(c, hidden, layer, c.size("num_hidden_layers"), tied=False)


_H = "transformer.h."
_COMMON = {"mlp__up": "mlp.dense_h_to_4h", "mlp__down": "mlp.dense_4h_to_h"}
_FALCON: Spelling = {
    "embed": "transformer.word_embeddings.weight",
    "norm": "transformer.ln_f.weight",
    "norm_bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
    **modules(
        _H,
        **_COMMON,
        input_norm="input_layernorm",
        post_norm="post_attention_layernorm",
        attn_norm="ln_attn",
        mlp_norm="ln_mlp",
        attn__qkv="self_attention.query_key_value",
        attn__o="self_attention.dense",
    ),
    **packed_qkv(_H + "{layer}.self_attention.query_key_value", by_group=True),
}
_BLOOM: Spelling = {
    **_FALCON,
    "embed_norm": "transformer.word_embeddings_layernorm.weight",
    "embed_norm_bias": "transformer.word_embeddings_layernorm.bias",
}

FALCON = Family(
    name="falcon",
    architectures=("FalconForCausalLM",),
    schema=falcon,
    spelling=_FALCON,
    native=NATIVE,
    waived=(blocks.INV_FREQ, MASKS),
)
BLOOM = Family(
    name="bloom",
    architectures=("BloomForCausalLM",),
    schema=bloom,
    spelling=_BLOOM,
    variants=(respelled(_BLOOM, ("transformer.", "")),),
    native=NATIVE,
    waived=(MASKS,),
)
NEOX = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    schema=neox,
    spelling={
        "embed": "gpt_neox.embed_in.weight",
        "norm": "gpt_neox.final_layer_norm.weight",
        "norm_bias": "gpt_neox.final_layer_norm.bias",
        "head": "embed_out.weight",
        **modules(
            "gpt_neox.layers.",
            **_COMMON,
            input_norm="input_layernorm",
            post_norm="post_attention_layernorm",
            attn__qkv="attention.query_key_value",
            attn__o="attention.dense",
        ),
    },
    native=NATIVE,
    waived=(blocks.INV_FREQ, MASKS),
)
