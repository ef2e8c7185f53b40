"""Moondream-3's language model: layer norms, attention and MLP side by side, experts after the first layers, two scales by token.

The scales (``tau``) of queries and values are made from queries, keys and values of all heads, so each rank has the rows of its
heads, whole. The config describes the model under ``config``, and releases leave all of it out.

Sources: ``moondream3.py`` in ``vllm/model_executor/models`` and in ``vllm/transformers_utils/configs``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    OF_VLLM,
    Family,
    Param,
    Schema,
    Tensor,
    by_rows,
    by_vocabulary,
    embedding,
)
from loadmaster.architectures.spelling import packed

NAMES: Final = ("Moondream3ForCausalLM", "HfMoondream")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    c = c.section("config").section("text")
    hidden, heads, vocab = c.size("dim", 2048), c.size("n_heads", 32), c.size("vocab_size", 51200)
    moe = c.section("moe")
    kv_heads, head, num_layers = c.size("n_kv_heads", 32), hidden // heads, c.size("n_layers", 24)
    every = (heads + 2 * kv_heads) * head
    common = (
        Tensor("input_norm", (hidden,)),
        *blocks.norm_biases(hidden, "input_norm"),
        *blocks.attention(hidden, heads, kv_heads, head, bias=True, out_bias=True),
        Tensor("tau.alpha", (heads,), by_rows()),
        *(Tensor(f"tau.{part}", (heads, every), by_rows()) for part in ("q", "v")),
    )
    num_experts = moe.size("n_experts", 64)
    sparse = (
        *blocks.experts(hidden, moe.size("expert_inner_dim", 1024), num_experts),
        Tensor("moe.router_bias", (num_experts,)),
    )
    start = moe.size("start_layer", 4, least=0)
    return Schema(
        top=(
            *embedding(c, hidden=hidden, vocab=vocab),
            *blocks.norm_biases(hidden, "norm"),
            Tensor("head_bias", (vocab,), by_vocabulary()),
        ),
        kinds={
            "dense": (*common, *blocks.plain_mlp(hidden, c.size("ff_dim", 8192), bias=True)),
            "sparse": (*common, *sparse),
        },
        layers=tuple("dense" if layer < start else "sparse" for layer in range(num_layers)),
    )


_TEXT: Final = "model.text."
_BLOCK: Final = _TEXT + "blocks.{layer}."
_MODULES: Final = {
    "attn.o": "attn.proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "input_norm": "ln",
    "moe.router": "mlp.router",
}
_TAU: Final = {"tau.alpha": "attn.tau.alpha", "tau.q": "attn.tau.wq", "tau.v": "attn.tau.wv"}

FAMILY = Family(
    name="moondream3",
    architectures=NAMES,
    schema=schema,
    spelling={
        **{"embed": _TEXT + "wte", "norm": _TEXT + "post_ln.weight", "norm_bias": _TEXT + "post_ln.bias"},
        **{"head": _TEXT + "lm_head.weight", "head_bias": _TEXT + "lm_head.bias"},
        **packed(_BLOCK + "attn.qkv.weight", "attn.q", "attn.k", "attn.v"),
        **packed(_BLOCK + "attn.qkv.bias", "attn.q_bias", "attn.k_bias", "attn.v_bias"),
        **{name: f"{_BLOCK}{stored}.weight" for name, stored in _MODULES.items()},
        **{f"{name}_bias": f"{_BLOCK}{stored}.bias" for name, stored in _MODULES.items()},
        **{name: _BLOCK + stored for name, stored in _TAU.items()},
        **packed(_BLOCK + "mlp.fc1.weight", "moe.gate", "moe.up", stacked=True),
        **packed(_BLOCK + "mlp.fc2.weight", "moe.down", stacked=True),
    },
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        *blocks.NORM_BIASES_NATIVE,
        Param("lm_head.bias", ("head_bias",), stage="last"),
        *blocks.ATTENTION_NATIVE,
        *(Param(f"{{block}}.self_{stored}", (name,)) for name, stored in _TAU.items()),
        *blocks.PLAIN_MLP_NATIVE,
        *blocks.EXPERTS_NATIVE,
    ),
    waived=((r"model\.(vision|region)\..*", LANGUAGE_ONLY),),
    unchecked=dict.fromkeys(NAMES, OF_VLLM),
)
