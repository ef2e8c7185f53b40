"""Llama and its dense relatives: Llama, SmolLM2, Mistral, Qwen2, Qwen3.

Sources: the released configs and ``modeling_llama.py``, ``modeling_qwen2.py``, ``modeling_qwen3.py`` and
``modeling_mistral.py`` of transformers.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Schema, embedding


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    architecture = c.values["architectures"][0]
    bias = c.flag("attention_bias")  # Qwen2 has biases on q, k and v and says so nowhere; Llama's flag includes o
    qk_norm = head if architecture == "Qwen3ForCausalLM" else 0
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias or architecture == "Qwen2ForCausalLM",
            out_bias=bias and architecture != "Qwen2ForCausalLM",
            q_norm=qk_norm,
            k_norm=qk_norm,
        ),
        *blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    schema=schema,
    spelling=blocks.DECODER_SPELLING,
    native=blocks.DECODER_NATIVE,
    waived=(blocks.INV_FREQ,),
    runs=True,
)
