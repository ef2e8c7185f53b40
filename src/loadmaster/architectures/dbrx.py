"""DBRX: norms without biases, q, k and v in one matrix, and experts whose rows follow one another in one matrix.

Sources: ``modeling_dbrx.py`` of transformers 5.24; ``dbrx.py`` in ``vllm/model_executor/models``, whose loader in 0.33 looks
for experts under the names that they had before, and loads no DBRX.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.architectures.spelling import packed


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "tie_word_embeddings", False)
    hidden, heads, ffn = c.size("d_model", 2048), c.size("n_heads", 16), c.section("ffn_config")
    kv_heads = c.section("attn_config").size("kv_n_heads", 1)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, hidden // heads),
        *blocks.experts(hidden, ffn.size("ffn_hidden_size", 3584), ffn.size("moe_num_experts", 4)),
    )
    return Schema(embedding(c, hidden=hidden), {"sparse": layer}, ("sparse",) * c.size("n_layers", 24))


_BLOCK: Final = "transformer.blocks.{layer}."
_NORMED: Final = _BLOCK + "norm_attn_norm."
_EXPERTS: Final = _BLOCK + "ffn.experts.mlp."

FAMILY = Family(
    name="dbrx",
    architectures=("DbrxForCausalLM",),
    schema=schema,
    spelling={
        **{"embed": "transformer.wte.weight", "norm": "transformer.norm_f.weight", "head": "lm_head.weight"},
        "input_norm": _NORMED + "norm_1.weight",
        "post_norm": _NORMED + "norm_2.weight",
        **packed(_NORMED + "attn.Wqkv.weight", "attn.q", "attn.k", "attn.v"),
        "attn.o": _NORMED + "attn.out_proj.weight",
        "moe.router": _BLOCK + "ffn.router.layer.weight",
        **packed(_EXPERTS + "w1", "moe.gate", stacked=True, flat=True),
        **packed(_EXPERTS + "v1", "moe.up", stacked=True, flat=True),
        **packed(_EXPERTS + "w2", "moe.down", stacked=True, flat=True, transposed=True),
    },
    native=(*blocks.TOP_NATIVE, *blocks.NORMS_NATIVE, *blocks.ATTENTION_NATIVE, *blocks.EXPERTS_NATIVE),
    waived=(blocks.INV_FREQ,),
)
