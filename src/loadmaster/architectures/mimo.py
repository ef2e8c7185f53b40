"""MiMo-7B: a Qwen2 with MTP layers under ``model.mtp_layers``, which share the model's embedding and head.

Sources: ``mimo.py`` and ``mimo_mtp.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, Tensor, embedding
from loadmaster.architectures.spelling import respelled


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head, bias=c.flag("attention_bias", True)),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
    )
    draft = (
        Tensor("mtp.eh_proj", (hidden, 2 * hidden)),
        *(Tensor(f"mtp.{name}", (hidden,)) for name in ("enorm", "hnorm", "norm")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer, "mtp": (*layer, *draft)},
        layers=("dense",) * c.size("num_hidden_layers"),
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
    )


_MTP = "model.mtp_layers.{layer}."

FAMILY = Family(
    name="mimo",
    architectures=("MiMoForCausalLM",),
    schema=schema,
    spelling=blocks.DECODER_SPELLING,
    drafts=(
        {
            **respelled(blocks.DECODER_SPELLING, (blocks.LAYER, _MTP)),
            "mtp.eh_proj": _MTP + "input_proj.weight",
            "mtp.enorm": _MTP + "token_layernorm.weight",
            "mtp.hnorm": _MTP + "hidden_layernorm.weight",
            "mtp.norm": _MTP + "final_layernorm.weight",
        },
    ),
    native=(*blocks.DECODER_NATIVE, *blocks.DRAFT_NATIVE),
    waived=(blocks.INV_FREQ,),
    unchecked={"MiMoForCausalLM": OF_VLLM},
)
