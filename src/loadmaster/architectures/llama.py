"""Llama and its dense relatives: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

Sources: the released configs and ``modeling_llama.py``, ``modeling_qwen2.py``, ``modeling_qwen3.py`` and
``modeling_mistral.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, linear


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, vocab, intermediate = c.size("hidden_size"), c.size("vocab_size"), c.size("intermediate_size")
    heads = c.size("num_attention_heads")
    kv_heads = c.size("num_key_value_heads", heads)
    head = c.size("head_dim", hidden // heads)
    architecture = c.values["architectures"][0]
    tied = c.flag("tie_word_embeddings")

    layer = [
        Tensor("input_norm", (hidden,)),
        linear("attn.q", heads * head, hidden, by_rows(head)),
        linear("attn.k", kv_heads * head, hidden, by_rows(head, repeat=True)),
        linear("attn.v", kv_heads * head, hidden, by_rows(head, repeat=True)),
        linear("attn.o", hidden, heads * head, by_columns(head)),
        Tensor("post_norm", (hidden,)),
        linear("mlp.gate", intermediate, hidden, by_rows()),
        linear("mlp.up", intermediate, hidden, by_rows()),
        linear("mlp.down", hidden, intermediate, by_columns()),
    ]
    bias = c.flag("attention_bias")  # Qwen2 has biases on q, k and v and says so nowhere; Llama's flag includes o
    if bias or architecture == "Qwen2ForCausalLM":
        layer += [
            Tensor("attn.q_bias", (heads * head,), by_rows(head)),
            Tensor("attn.k_bias", (kv_heads * head,), by_rows(head, repeat=True)),
            Tensor("attn.v_bias", (kv_heads * head,), by_rows(head, repeat=True)),
        ]
    if bias and architecture != "Qwen2ForCausalLM":
        layer.append(Tensor("attn.o_bias", (hidden,)))
    if c.flag("mlp_bias"):
        layer += [
            Tensor("mlp.gate_bias", (intermediate,), by_rows()),
            Tensor("mlp.up_bias", (intermediate,), by_rows()),
            Tensor("mlp.down_bias", (hidden,)),
        ]
    if architecture == "Qwen3ForCausalLM":
        layer += [Tensor("attn.q_norm", (head,)), Tensor("attn.k_norm", (head,))]

    top = [Tensor("embed", (vocab, hidden), by_rows()), Tensor("norm", (hidden,))]
    if not tied:
        top.append(Tensor("head", (vocab, hidden), by_rows()))
    return Schema(
        top=tuple(top),
        kinds={"dense": tuple(layer)},
        layers=("dense",) * c.size("num_hidden_layers"),
        tied=tied,
        waived=((r"lm_head\.weight", "tied to the embedding"),) if tied else (),
    )


SPELLING = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
    "input_norm": "model.layers.{layer}.input_layernorm.weight",
    "post_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "attn.q": "model.layers.{layer}.self_attn.q_proj.weight",
    "attn.k": "model.layers.{layer}.self_attn.k_proj.weight",
    "attn.v": "model.layers.{layer}.self_attn.v_proj.weight",
    "attn.o": "model.layers.{layer}.self_attn.o_proj.weight",
    "attn.q_bias": "model.layers.{layer}.self_attn.q_proj.bias",
    "attn.k_bias": "model.layers.{layer}.self_attn.k_proj.bias",
    "attn.v_bias": "model.layers.{layer}.self_attn.v_proj.bias",
    "attn.o_bias": "model.layers.{layer}.self_attn.o_proj.bias",
    "attn.q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "attn.k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    "mlp.gate": "model.layers.{layer}.mlp.gate_proj.weight",
    "mlp.up": "model.layers.{layer}.mlp.up_proj.weight",
    "mlp.down": "model.layers.{layer}.mlp.down_proj.weight",
    "mlp.gate_bias": "model.layers.{layer}.mlp.gate_proj.bias",
    "mlp.up_bias": "model.layers.{layer}.mlp.up_proj.bias",
    "mlp.down_bias": "model.layers.{layer}.mlp.down_proj.bias",
}

NATIVE = (
    Param("embed_tokens.weight", ("embed",), stage="first"),
    Param("norm.weight", ("norm",), stage="last"),
    Param("lm_head.weight", ("head",), otherwise="embed_tokens.weight", stage="last"),
    Param("{block}.input_layernorm.weight", ("input_norm",)),
    Param("{block}.post_attention_layernorm.weight", ("post_norm",)),
    Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.v")),
    Param("{block}.self_attn.qkv_proj.bias", ("attn.q_bias", "attn.k_bias", "attn.v_bias")),
    Param("{block}.self_attn.o_proj.weight", ("attn.o",)),
    Param("{block}.self_attn.o_proj.bias", ("attn.o_bias",)),
    Param("{block}.self_attn.q_norm.weight", ("attn.q_norm",)),
    Param("{block}.self_attn.k_norm.weight", ("attn.k_norm",)),
    Param("{block}.mlp.gate_up_proj.weight", ("mlp.gate", "mlp.up")),
    Param("{block}.mlp.gate_up_proj.bias", ("mlp.gate_bias", "mlp.up_bias")),
    Param("{block}.mlp.down_proj.weight", ("mlp.down",)),
    Param("{block}.mlp.down_proj.bias", ("mlp.down_bias",)),
)

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    schema=schema,
    spelling=SPELLING,
    native=NATIVE,
    waived=((r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "rotary frequencies are recomputed"),),
)
