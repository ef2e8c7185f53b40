"""GPT-2, GPT-BigCode (StarCoder) and MPT: q, k and v one after another. GPT-2 stores its weights (in, out).

Published GPT-2s have no ``transformer.`` before their names.

Sources: ``modeling_gpt2.py``, ``modeling_gpt_bigcode.py`` and ``modeling_mpt.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import MASKS, NATIVE, model, modules, normed, packed_qkv
from loadmaster.architectures.schema import Family, Schema, Tensor
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import UnsupportedError


def gpt2(c: Config) -> Schema:
    """Return the logical tensors of a GPT-2 or a GPT-BigCode (StarCoder), which has one head of keys and values."""
    hidden, heads = c.size("n_embd"), c.size("n_head")
    head = hidden // heads
    is_bigcode = c.values["architectures"][0] == "GPTBigCodeForCausalLM"
    if is_bigcode and not c.flag("multi_query", True):
        raise UnsupportedError("config.json: multi_query false is not supported in GPT-BigCode")
    layer = (
        *normed(hidden, "input_norm", "post_norm"),
        *blocks.attention(hidden, heads, 1 if is_bigcode else heads, head, bias=True, out_bias=True),
        *blocks.plain_mlp(hidden, c.size("n_inner", 4 * hidden), bias=True),
    )
    positions = Tensor("positions", (c.size("n_positions", 1024), hidden))
    return model(c, hidden, layer, c.size("n_layer"), positions, tied=True)


def mpt(c: Config) -> Schema:
    """Return the logical tensors of an MPT, which has no biases."""
    hidden, heads = c.size("d_model"), c.size("n_heads")
    if not c.flag("no_bias", True):
        raise UnsupportedError("config.json: no_bias false is not supported in MPT")
    layer = (
        *normed(hidden, "input_norm", "post_norm", bias=False),
        *blocks.attention(hidden, heads, heads, hidden // heads),
        *blocks.plain_mlp(hidden, c.size("expansion_ratio", 4) * hidden),
    )
    return model(c, hidden, layer, c.size("n_layers"), tied=True, bias=False)


_H = "transformer.h."
_BIGCODE: Spelling = {
    "embed": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "norm": "transformer.ln_f.weight",
    "norm_bias": "transformer.ln_f.bias",
    "head": "lm_head.weight",
    **modules(
        _H,
        input_norm="ln_1",
        post_norm="ln_2",
        attn__o="attn.c_proj",
        mlp__up="mlp.c_fc",
        mlp__down="mlp.c_proj",
    ),
    **packed_qkv(_H + "{layer}.attn.c_attn"),
}
_GPT2: Spelling = {
    **_BIGCODE,
    **packed_qkv(_H + "{layer}.attn.c_attn", transposed=True),
    **packed(_H + "{layer}.attn.c_proj.weight", "attn.o", transposed=True),
    **packed(_H + "{layer}.mlp.c_fc.weight", "mlp.up", transposed=True),
    **packed(_H + "{layer}.mlp.c_proj.weight", "mlp.down", transposed=True),
}

GPT2 = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel", "GPTBigCodeForCausalLM"),
    schema=gpt2,
    spelling=_GPT2,
    variants=(respelled(_GPT2, ("transformer.", "")), _BIGCODE),
    native=NATIVE,
    waived=(MASKS,),
)
MPT = Family(
    name="mpt",
    architectures=("MptForCausalLM",),
    schema=mpt,
    spelling={
        "embed": "transformer.wte.weight",
        "norm": "transformer.norm_f.weight",
        "head": "lm_head.weight",
        **modules(
            "transformer.blocks.",
            input_norm="norm_1",
            post_norm="norm_2",
            attn__o="attn.out_proj",
            mlp__up="ffn.up_proj",
            mlp__down="ffn.down_proj",
        ),
        **packed_qkv("transformer.blocks.{layer}.attn.Wqkv"),
    },
    native=NATIVE,
)
