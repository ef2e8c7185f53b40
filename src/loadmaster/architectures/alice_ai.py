"""AliceAI: Kimi Delta Attention, in some layers Qwen3-Next's gated attention; experts, and attention over residuals.

The first attention reads the embedding alone, so the first layer has nothing that weighs snapshots for it. vLLM has no stages of
it; here a stage passes on the snapshots, as in Kimi-K3.

Sources: ``alice_ai.py`` in ``vllm/model_executor/models``, and ``kimi_gdn_linear_attn.py`` in ``vllm/model_executor/layers``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, kda, residual_bank
from loadmaster.architectures.config import Config
from loadmaster.architectures.qwen3_next import FULL, LINEAR, gated_attention
from loadmaster.architectures.qwen_moe import shared_expert
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, embedding
from loadmaster.errors import ConfigError

ALICE: Final = "AliceAIForCausalLM"
BEFORE_ATTENTION: Final = "self_attention_res"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, num_layers = c.size("hidden_size"), c.size("num_hidden_layers")
    heads, head, width = (c.size(f"linear_{key}") for key in ("num_key_heads", "key_head_dim", "conv_kernel_dim"))
    for key, as_many in (("linear_num_value_heads", heads), ("linear_value_head_dim", head)):
        if c.size(key, as_many) != as_many:
            raise ConfigError(f"config.json: {key} is {c.size(key)}, expected {as_many}, as of keys")
    attentions = {LINEAR: kda.kda(hidden, heads, head, width), FULL: gated_attention(c)}
    mixed = residual_bank.of_layer(hidden)
    layer = (
        *blocks.norms(hidden),
        *blocks.experts(hidden, c.size("moe_intermediate_size"), c.size("num_experts"), router_bias=True),
        *shared_expert(c),
    )
    types = c.types("layer_types", (LINEAR, FULL), num_layers)
    later = {kind: (*layer, *attention, *mixed) for kind, attention in attentions.items()}
    first = tuple(t for t in later[types[0]] if not t.name.startswith(BEFORE_ATTENTION))
    return Schema(
        top=(*embedding(c), *residual_bank.of_model(hidden)),
        kinds={**later, "first": first},
        layers=("first", *types[1:]),
        carries=residual_bank.carried(
            Config({**c.values, "attn_res_block_size": c.size("block_attn_res_block_size")}), num_layers
        ),
    )


_MIXES: Final = {BEFORE_ATTENTION: "attn_res", "mlp_res": "mlp_res"}

FAMILY = Family(
    name="alice_ai",
    architectures=(ALICE,),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **kda.kda_spelling("linear_attn"),
        "linear.a_log": blocks.LAYER + "linear_attn.a_log_bias",
        **blocks.experts_spelling(),
        **blocks.SHARED_EXPERT_SPELLING,
        "output_attn_res_norm": "model.attnres_final.res_norm_weight",
        "output_attn_res_proj": "model.attnres_final.res_proj.weight",
        **{f"{name}_norm": f"{blocks.LAYER}{stored}_norm_weight" for name, stored in _MIXES.items()},
        **{f"{name}_proj": f"{blocks.LAYER}{stored}_proj.weight" for name, stored in _MIXES.items()},
    },
    native=(
        *blocks.DECODER_NATIVE,
        *residual_bank.NATIVE,
        *kda.KDA_NATIVE,
        *blocks.EXPERTS_NATIVE,
        *blocks.SHARED_EXPERT_NATIVE,
    ),
    waived=(blocks.INV_FREQ, (r"mtp\..*", "the MTP module of AliceAI is not supported")),
    unchecked={ALICE: OF_VLLM},
)
