"""Phi-1 to Phi-2, and GPT-J: attention and MLP beside each other under one norm, and a head with a bias.

Sources: ``modeling_phi.py`` and ``modeling_gptj.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import MASKS, modules
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_vocabulary, embedding


def phi(c: Config) -> Schema:
    """Return the logical tensors of a Phi, which has biases everywhere."""
    require(c, "qk_layernorm", False)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    attention = blocks.attention(hidden, heads, kv_heads, head, bias=True, out_bias=True)
    return _model(c, hidden, c.size("num_hidden_layers"), c.size("intermediate_size"), attention)


def gptj(c: Config) -> Schema:
    """Return the logical tensors of a GPT-J, which has no biases in attention."""
    hidden, heads = c.size("n_embd"), c.size("n_head")
    attention = blocks.attention(hidden, heads, heads, hidden // heads)
    values = Config({**c.values, "hidden_size": hidden})
    return _model(values, hidden, c.size("n_layer"), c.size("n_inner", 4 * hidden), attention)


def _model(c: Config, hidden: int, num_layers: int, inner: int, attention: tuple[Tensor, ...]) -> Schema:
    layer = (
        Tensor("input_norm", (hidden,)),
        *blocks.norm_biases(hidden, "input_norm"),
        *attention,
        *blocks.plain_mlp(hidden, inner, bias=True),
    )
    top = (
        *embedding(c),
        *blocks.norm_biases(hidden, "norm"),
        Tensor("head_bias", (c.size("vocab_size"),), by_vocabulary()),
    )
    return Schema(top=top, kinds={"dense": layer}, layers=("dense",) * num_layers)


_NATIVE = (
    *blocks.TOP_NATIVE,
    Param("lm_head.bias", ("head_bias",), stage="last"),
    *blocks.NORMS_NATIVE,
    *blocks.NORM_BIASES_NATIVE,
    *blocks.ATTENTION_NATIVE,
    *blocks.PLAIN_MLP_NATIVE,
)
_HEAD = {"head": "lm_head.weight", "head_bias": "lm_head.bias"}

PHI = Family(
    name="phi",
    architectures=("PhiForCausalLM",),
    schema=phi,
    spelling={
        "embed": "model.embed_tokens.weight",
        "norm": "model.final_layernorm.weight",
        "norm_bias": "model.final_layernorm.bias",
        **_HEAD,
        **modules(
            "model.layers.",
            input_norm="input_layernorm",
            attn__q="self_attn.q_proj",
            attn__k="self_attn.k_proj",
            attn__v="self_attn.v_proj",
            attn__o="self_attn.dense",
            mlp__up="mlp.fc1",
            mlp__down="mlp.fc2",
        ),
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
)
GPTJ = Family(
    name="gptj",
    architectures=("GPTJForCausalLM",),
    schema=gptj,
    spelling={
        "embed": "transformer.wte.weight",
        "norm": "transformer.ln_f.weight",
        "norm_bias": "transformer.ln_f.bias",
        **_HEAD,
        **modules(
            "transformer.h.",
            input_norm="ln_1",
            attn__q="attn.q_proj",
            attn__k="attn.k_proj",
            attn__v="attn.v_proj",
            attn__o="attn.out_proj",
            mlp__up="mlp.fc_in",
            mlp__down="mlp.fc_out",
        ),
    },
    native=_NATIVE,
    waived=(MASKS,),
)
