"""OPT and Persimmon: layer norms with biases, an MLP without a gate, and names of their own.

OPT has learned positions, two more than the config says. OPT-350M embeds tokens in fewer elements than its layers have, with a
projection on each side, and norms the sums instead of what is added. Persimmon stores q, k and v by head.

Sources: ``modeling_opt.py`` and ``modeling_persimmon.py`` of transformers.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import NATIVE, grouped, model, modules, normed
from loadmaster.architectures.schema import Carried, Family, Param, Schema, Tensor, by_vocabulary, linear
from loadmaster.architectures.spelling import Spelling, respelled
from loadmaster.errors import UnsupportedError


def opt(c: Config) -> Schema:
    """Return the logical tensors of an OPT."""
    if not c.flag("tie_word_embeddings", True) or not c.flag("layer_norm_elementwise_affine", True):
        raise UnsupportedError(
            "config.json: an OPT whose head is not tied, or whose norms have no weights, is not supported"
        )
    hidden, heads, bias = c.size("hidden_size"), c.size("num_attention_heads"), c.flag("enable_bias", True)
    layer = (
        *normed(hidden, "input_norm", "post_norm"),
        *blocks.attention(hidden, heads, heads, hidden // heads, bias=bias, out_bias=bias),
        *blocks.plain_mlp(hidden, c.size("ffn_dim"), bias=bias),
    )
    width, num_layers = c.size("word_embed_proj_dim", hidden), c.size("num_hidden_layers")
    top = [
        Tensor("embed", (c.size("vocab_size"), width), by_vocabulary()),
        Tensor("positions", (c.size("max_position_embeddings") + 2, hidden)),
    ]
    if c.flag("do_layer_norm_before", True) and not c.flag("_remove_final_layer_norm"):
        top += normed(hidden, "norm")
    if width != hidden:
        top += (linear("project_in", hidden, width), linear("project_out", width, hidden))
    carried = Carried("hidden_states", (hidden,))
    return Schema(
        tuple(top), {"dense": layer}, ("dense",) * num_layers, carries=((), *((carried,),) * (num_layers - 1))
    )


def persimmon(c: Config) -> Schema:
    """Return the logical tensors of a Persimmon."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    head = hidden // heads
    norms = ("attn.q_norm", "attn.k_norm") if c.flag("qk_layernorm", True) else ()
    layer = (
        *normed(hidden, "input_norm", "post_norm"),
        *grouped(hidden, heads, 3 * head, head, bias=True, out_bias=True),
        *normed(head, *norms),
        *blocks.plain_mlp(hidden, c.size("intermediate_size"), bias=True),
    )
    return model(c, hidden, layer, c.size("num_hidden_layers"), tied=False)


_LAYERS: Final = "model.decoder.layers."
_OPT: Spelling = {
    **{"embed": "model.decoder.embed_tokens.weight", "positions": "model.decoder.embed_positions.weight"},
    **{"norm": "model.decoder.final_layer_norm.weight", "norm_bias": "model.decoder.final_layer_norm.bias"},
    **{f"project_{way}": f"model.decoder.project_{way}.weight" for way in ("in", "out")},
    **modules(_LAYERS, input_norm="self_attn_layer_norm", post_norm="final_layer_norm"),
    **modules(_LAYERS, **{f"attn__{part}": f"self_attn.{part}_proj" for part in ("q", "k", "v")}),
    **modules(_LAYERS, attn__o="self_attn.out_proj", mlp__up="fc1", mlp__down="fc2"),
}

OPT = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    schema=opt,
    spelling=_OPT,
    variants=(respelled(_OPT, ("model.", "")),),
    native=(
        *NATIVE,
        Param("project_in.weight", ("project_in",), stage="first"),
        Param("project_out.weight", ("project_out",), stage="last"),
    ),
)
PERSIMMON = Family(
    name="persimmon",
    architectures=("PersimmonForCausalLM",),
    schema=persimmon,
    spelling={
        "embed": "model.embed_tokens.weight",
        **{"norm": "model.final_layernorm.weight", "norm_bias": "model.final_layernorm.bias", "head": "lm_head.weight"},
        **modules("model.layers.", input_norm="input_layernorm", post_norm="post_attention_layernorm"),
        **modules("model.layers.", attn__qkv="self_attn.query_key_value", attn__o="self_attn.dense"),
        **modules("model.layers.", attn__q_norm="self_attn.q_layernorm", attn__k_norm="self_attn.k_layernorm"),
        **modules("model.layers.", mlp__up="mlp.dense_h_to_4h", mlp__down="mlp.dense_4h_to_h"),
    },
    native=(
        *NATIVE,
        *(
            Param(f"{{block}}.self_attn.{part}_layernorm.{kind}", (f"attn.{part}_norm{suffix}",))
            for part in ("q", "k")
            for kind, suffix in (("weight", ""), ("bias", "_bias"))
        ),
    ),
    waived=(blocks.INV_FREQ,),
)
