"""Models of 2023 and 2024 with a gated MLP whose q, k and v are one tensor: Qwen 1, ChatGLM, Baichuan, InternLM2.

In InternLM2 the rows alternate by group: the queries that share a head of keys, that head, and that of the values. In the others
q, k and v follow one another.

Sources: ``qwen.py``, ``chatglm.py``, ``baichuan.py`` and ``internlm2.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.fused_qkv import modules, packed_qkv
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, Tensor, embedding
from loadmaster.architectures.spelling import packed


def _model(c: Config, num_layers: int, hidden: int, inner: int, attention: tuple[Tensor, ...]) -> Schema:
    layer = (*blocks.norms(hidden), *attention, *blocks.gated_mlp(hidden, inner))
    return Schema(top=embedding(c), kinds={"dense": layer}, layers=("dense",) * num_layers)


def qwen(c: Config) -> Schema:
    """Return the logical tensors of a Qwen 1, whose config counts gate and up together."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    head = c.size("kv_channels", hidden // heads)
    attention = blocks.attention(hidden, heads, heads, head, bias=True)
    return _model(c, c.size("num_hidden_layers"), hidden, c.size("intermediate_size") // 2, attention)


def chatglm(c: Config) -> Schema:
    """Return the logical tensors of a ChatGLM2 or 3, or a GLM-4 in its authors' names."""
    for key, supported in (("add_bias_linear", False), ("rmsnorm", True), ("post_layer_norm", True)):
        require(c, key, supported)
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    kv_heads = c.size("multi_query_group_num", 2) if c.flag("multi_query_attention") else heads
    head = c.size("kv_channels", hidden // heads)
    attention = blocks.attention(hidden, heads, kv_heads, head, bias=c.flag("add_qkv_bias"))
    values = Config({**c.values, "vocab_size": c.size("padded_vocab_size", c.optional_size("vocab_size"))})
    return _model(values, c.size("num_layers"), hidden, c.size("ffn_hidden_size"), attention)


def baichuan(c: Config) -> Schema:
    """Return the logical tensors of a Baichuan."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    attention = blocks.attention(hidden, heads, heads, hidden // heads)
    return _model(c, c.size("num_hidden_layers"), hidden, c.size("intermediate_size"), attention)


def internlm2(c: Config) -> Schema:
    """Return the logical tensors of an InternLM2."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias = c.flag("bias")
    attention = blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias, groups=kv_heads)
    return _model(c, c.size("num_hidden_layers"), hidden, c.size("intermediate_size"), attention)


_NATIVE = (*blocks.DECODER_NATIVE, *blocks.NORM_BIASES_NATIVE)

QWEN = Family(
    name="qwen",
    architectures=("QWenLMHeadModel",),
    schema=qwen,
    spelling={
        "embed": "transformer.wte.weight",
        "norm": "transformer.ln_f.weight",
        "head": "lm_head.weight",
        **modules(
            "transformer.h.",
            input_norm="ln_1",
            post_norm="ln_2",
            attn__o="attn.c_proj",
            mlp__gate="mlp.w2",
            mlp__up="mlp.w1",
            mlp__down="mlp.c_proj",
        ),
        **packed_qkv("transformer.h.{layer}.attn.c_attn"),
    },
    native=_NATIVE,
    waived=(
        (r"transformer\.(h\.\d+\.attn\.)?rotary_emb\.inv_freq|transformer\.h\.\d+\.attn\.masked_bias", "computed"),
    ),
    unchecked={"QWenLMHeadModel": OF_VLLM},
)
_GLM = "transformer.encoder.layers."
CHATGLM = Family(
    name="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    schema=chatglm,
    spelling={
        "embed": "transformer.embedding.word_embeddings.weight",
        "norm": "transformer.encoder.final_layernorm.weight",
        "head": "transformer.output_layer.weight",
        **modules(
            _GLM,
            input_norm="input_layernorm",
            post_norm="post_attention_layernorm",
            attn__o="self_attention.dense",
            mlp__down="mlp.dense_4h_to_h",
        ),
        **packed_qkv(_GLM + "{layer}.self_attention.query_key_value"),
        **packed(_GLM + "{layer}.mlp.dense_h_to_4h.weight", "mlp.gate", "mlp.up"),
    },
    native=_NATIVE,
    waived=((r"transformer\.rotary_pos_emb\.inv_freq", blocks.INV_FREQ[1]),),
    unchecked=dict.fromkeys(("ChatGLMModel", "ChatGLMForConditionalGeneration"), OF_VLLM),
)
BAICHUAN = Family(
    name="baichuan",
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    schema=baichuan,
    spelling={**blocks.DECODER_SPELLING, **packed_qkv(blocks.LAYER + "self_attn.W_pack")},
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked=dict.fromkeys(("BaichuanForCausalLM", "BaiChuanForCausalLM"), OF_VLLM),
)
INTERNLM2 = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    schema=internlm2,
    spelling={
        "embed": "model.tok_embeddings.weight",
        "norm": "model.norm.weight",
        "head": "output.weight",
        **modules(
            "model.layers.",
            input_norm="attention_norm",
            post_norm="ffn_norm",
            attn__o="attention.wo",
            mlp__gate="feed_forward.w1",
            mlp__up="feed_forward.w3",
            mlp__down="feed_forward.w2",
        ),
        **packed_qkv("model.layers.{layer}.attention.wqkv", by_group=True),
    },
    native=_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"InternLM2ForCausalLM": OF_VLLM},
)
