"""Molmo and Molmo-2: OLMo's names, and an embedding in two tensors, the second of which has the rows of image tokens.

``att_proj`` holds q, k and v, and ``ff_proj`` up before gate. Norms of queries and keys go over all heads, or in newer Molmo-2
over each. Ranks divide the first part of the embedding; the second, of 128 rows, is held by all. vLLM makes one table of both.

Sources: ``molmo.py`` and ``molmo2.py`` in ``vllm/model_executor/models``; ``molmo2`` of transformers 5.24, which saves the two
parts of the embedding with the wrong rows.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import LANGUAGE_ONLY, OF_VLLM, Family, Param, Schema, Tensor, embedding
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.errors import ConfigError

IMAGE_TOKENS: Final = 128
"""Rows that Molmo's embedding has after those of the vocabulary."""


def molmo(c: Config) -> Schema:
    """Return the logical tensors of a Molmo; its ``intermediate_size`` counts gate and up together."""
    rows = c.size("embedding_size", c.size("vocab_size"))
    values = {**c.values, "vocab_size": rows, "tie_word_embeddings": c.flag("weight_tying")}
    whole, bias = c.flag("attention_layer_norm"), c.flag("qkv_bias")
    return _schema(
        Config(values), c.size("intermediate_size") // 2, whole=whole, normed=whole, bias=bias, more=IMAGE_TOKENS
    )


def molmo2(c: Config) -> Schema:
    """Return the logical tensors of a Molmo-2."""
    kind = c.values.get("qk_norm_type", "olmo")
    if kind not in ("olmo", "qwen3"):
        raise ConfigError(f"config.json: qk_norm_type is {kind!r}, expected olmo or qwen3")
    bias, more = c.flag("attention_bias", c.flag("qkv_bias")), c.size("additional_vocab_size", IMAGE_TOKENS)
    normed = c.flag("use_qk_norm", True)
    return _schema(c, c.size("intermediate_size"), whole=kind == "olmo", normed=normed, bias=bias, more=more)


def _schema(c: Config, inner: int, *, whole: bool, normed: bool, bias: bool, more: int) -> Schema:
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    q_norm, k_norm = (heads * head, kv_heads * head) if whole else (head, head)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, q_norm=q_norm * normed, k_norm=k_norm * normed),
        *blocks.gated_mlp(hidden, inner),
    )
    top = (*embedding(c), Tensor("embed_more", (more, hidden)))
    return Schema(top, {"dense": layer}, ("dense",) * c.size("num_hidden_layers"))


_TOP: Final = {
    "embed": "model.transformer.wte.embedding",
    "embed_more": "model.transformer.wte.new_embedding",
    "norm": "model.transformer.ln_f.weight",
}
_BLOCK: Final = "model.transformer.blocks.{layer}."


def _spelling(head: str, attention: str = "", mlp: str = "") -> Spelling:
    """Return the spelling with the name of the head, and what stands before the names of attention and MLP."""
    own, parts = _BLOCK + attention, ("attn.q", "attn.k", "attn.v")
    return {
        **_TOP,
        "head": head,
        "input_norm": _BLOCK + "attn_norm.weight",
        "post_norm": _BLOCK + "ff_norm.weight",
        **packed(own + "att_proj.weight", *parts),
        **packed(own + "att_proj.bias", *(f"{part}_bias" for part in parts)),
        "attn.o": own + "attn_out.weight",
        **{f"attn.{part}_norm": f"{own}{part}_norm.weight" for part in ("q", "k")},
        **packed(f"{_BLOCK}{mlp}ff_proj.weight", "mlp.up", "mlp.gate"),
        "mlp.down": f"{_BLOCK}{mlp}ff_out.weight",
    }


_NATIVE: Final = (*blocks.DECODER_NATIVE, Param("embed_tokens.new_embedding", ("embed_more",), stage="first"))
_TOWER: Final = ((r"model\.vision_backbone\..*", LANGUAGE_ONLY),)

MOLMO = Family(
    name="molmo",
    architectures=("MolmoForCausalLM",),
    schema=molmo,
    spelling=_spelling("model.transformer.ff_out.weight"),
    native=_NATIVE,
    waived=_TOWER,
    unchecked={"MolmoForCausalLM": OF_VLLM},
)
MOLMO2 = Family(
    name="molmo2",
    architectures=("Molmo2ForConditionalGeneration",),
    schema=molmo2,
    spelling=_spelling("lm_head.weight", "self_attn.", "mlp."),
    native=_NATIVE,
    waived=_TOWER,
    section="text_config",
)
