"""Multi-head latent attention (MLA) and its indexer, as their three tables: DeepSeek's, which other families have too.

Keys and values of all heads come from one latent, which every rank holds; so do the queries where they are compressed
(``q_lora_rank``). ``kv_a`` also makes the rotated part of the keys; without rotation (``qk_rope_head_dim`` 0) only the latent.
The indexer selects the tokens that a layer attends to, and is not divided.

Sources: ``modeling_deepseek_v3.py`` and ``modeling_deepseek_v32.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures.blocks import LAYER
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param, Tensor, by_columns, by_rows, linear
from loadmaster.errors import UnsupportedError


def latent_attention(c: Config) -> tuple[Tensor, ...]:
    """Return the tensors of MLA, with compressed queries or without.

    Raises:
        UnsupportedError: it has biases.
    """
    if c.flag("attention_bias"):
        raise UnsupportedError("config.json: attention_bias is true; MLA with biases is not supported yet")
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    q_lora, kv_lora = c.optional_size("q_lora_rank"), c.size("kv_lora_rank")
    nope, rope = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim", least=0)
    value = c.size("v_head_dim")
    if q_lora is None:
        latent = "attn.kv_direct"
        queries: tuple[Tensor, ...] = (linear("attn.q_direct", heads * (nope + rope), hidden, by_rows(nope + rope)),)
    else:
        latent = "attn.kv_a"
        queries = (
            linear("attn.q_a", q_lora, hidden),
            Tensor("attn.q_a_norm", (q_lora,)),
            linear("attn.q_b", heads * (nope + rope), q_lora, by_rows(nope + rope)),
        )
    return (
        *queries,
        linear(latent, kv_lora + rope, hidden),
        Tensor("attn.kv_a_norm", (kv_lora,)),
        linear("attn.kv_b", heads * (nope + value), kv_lora, by_rows(nope + value)),
        linear("attn.o", hidden, heads * value, by_columns(value)),
    )


def indexer(c: Config, inputs: int | None = None) -> tuple[Tensor, ...]:
    """Return the tensors of an indexer; none where the config has no ``index_topk``.

    Its queries are made of the compressed queries, or of ``inputs`` elements.
    """
    if c.values.get("index_topk") is None:
        return ()
    hidden, q_lora = c.size("hidden_size"), c.size("q_lora_rank", inputs)
    heads, head = c.size("index_n_heads"), c.size("index_head_dim")
    return (
        linear("indexer.wq_b", heads * head, q_lora),
        linear("indexer.wk", head, hidden),
        Tensor("indexer.weights_proj", (heads, hidden), usual=("F32",)),
        Tensor("indexer.k_norm", (head,), usual=("F32",)),
        Tensor("indexer.k_norm_bias", (head,), usual=("F32",)),
    )


_STORED = LAYER + "self_attn."

SPELLING = {
    "attn.o": _STORED + "o_proj.weight",
    "attn.q_direct": _STORED + "q_proj.weight",
    "attn.kv_direct": _STORED + "kv_a_proj_with_mqa.weight",
    "attn.q_a": _STORED + "q_a_proj.weight",
    "attn.q_a_norm": _STORED + "q_a_layernorm.weight",
    "attn.q_b": _STORED + "q_b_proj.weight",
    "attn.kv_a": _STORED + "kv_a_proj_with_mqa.weight",
    "attn.kv_a_norm": _STORED + "kv_a_layernorm.weight",
    "attn.kv_b": _STORED + "kv_b_proj.weight",
}

INDEXER_SPELLING = {
    "indexer.wq_b": _STORED + "indexer.wq_b.weight",
    "indexer.wk": _STORED + "indexer.wk.weight",
    "indexer.weights_proj": _STORED + "indexer.weights_proj.weight",
    "indexer.k_norm": _STORED + "indexer.k_norm.weight",
    "indexer.k_norm_bias": _STORED + "indexer.k_norm.bias",
}

NATIVE = (
    Param("{block}.self_attn.o_proj.weight", ("attn.o",)),
    Param("{block}.self_attn.q_proj.weight", ("attn.q_direct",)),
    Param("{block}.self_attn.kv_a_proj_with_mqa.weight", ("attn.kv_direct",)),
    Param("{block}.self_attn.fused_qkv_a_proj.weight", ("attn.q_a", "attn.kv_a")),
    Param("{block}.self_attn.q_a_layernorm.weight", ("attn.q_a_norm",)),
    Param("{block}.self_attn.q_b_proj.weight", ("attn.q_b",)),
    Param("{block}.self_attn.kv_a_layernorm.weight", ("attn.kv_a_norm",)),
    Param("{block}.self_attn.kv_b_proj.weight", ("attn.kv_b",)),
)

INDEXER_NATIVE = (
    Param("{block}.self_attn.indexer.wq_b.weight", ("indexer.wq_b",)),
    Param("{block}.self_attn.indexer.wk_weights_proj.weight", ("indexer.wk", "indexer.weights_proj"), "decoded"),
    Param("{block}.self_attn.indexer.k_norm.weight", ("indexer.k_norm",)),
    Param("{block}.self_attn.indexer.k_norm.bias", ("indexer.k_norm_bias",)),
)
