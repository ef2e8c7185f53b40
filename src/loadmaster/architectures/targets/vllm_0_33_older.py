"""vLLM 0.33's models of the years before 2024 with names of their own: architecture in config.json → how it implements them.

Sources: ``falcon``, ``gpt2``, ``gpt_j``, ``opt``, ``chatglm``, ``exaone``, ``internlm2`` and ``transformers`` in
``vllm/model_executor/models``, of 0.33.0. Not described are Bloom, whose packed q, k and v it takes apart; and Phi-1 and 2, the
bias of whose head it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.targets.vllm import Described, without
from loadmaster.architectures.targets.vllm_0_33_dense import EVERYTHING, OF_TRANSFORMERS, WITH_BIAS


def _falcon(c: Config) -> str | None:
    """vLLM holds q, k and v of all heads one after another, which the first generation stores head by head."""
    is_grouped = c.flag("multi_query", True) or c.flag("new_decoder_architecture")
    return None if is_grouped else "each head of queries has its own keys"


_IN_FALCON: Final = (
    ("self_attn.qkv_proj.", "self_attention.query_key_value."),
    ("self_attn.o_proj.", "self_attention.dense."),
    ("mlp.up_proj.", "mlp.dense_h_to_4h."),
    ("mlp.down_proj.", "mlp.dense_4h_to_h."),
)
_FALCON: Final = Described(
    ("FalconForCausalLM",),
    modules=(*_IN_FALCON, ("attn_norm.", "ln_attn."), ("mlp_norm.", "ln_mlp.")),
    top=(("embed_tokens.", "word_embeddings."), ("norm.", "ln_f.")),
    on_every_stage=WITH_BIAS,
    model="transformer.",
    layers="h",
    sends=("hidden_states",),
    obstacle=_falcon,
)
_GPT2: Final = Described(
    ("GPT2LMHeadModel",),
    modules=(
        ("self_attn.qkv_proj.", "attn.c_attn."),
        ("self_attn.o_proj.", "attn.c_proj."),
        ("mlp.up_proj.", "mlp.c_fc."),
        ("mlp.down_proj.", "mlp.c_proj."),
        ("input_layernorm.", "ln_1."),
        ("post_attention_layernorm.", "ln_2."),
    ),
    top=(("embed_tokens.", "wte."), ("positions.", "wpe."), ("norm.", "ln_f.")),
    on_every_stage=(*WITH_BIAS, "positions.weight"),
    model="transformer.",
    layers="h",
    sends=("hidden_states",),
)
_GPTJ: Final = replace(
    _GPT2,
    classes=("GPTJForCausalLM",),
    modules=(
        ("self_attn.qkv_proj.", "attn.qkv_proj."),
        ("self_attn.o_proj.", "attn.out_proj."),
        ("mlp.up_proj.", "mlp.fc_in."),
        ("mlp.down_proj.", "mlp.fc_out."),
        ("input_layernorm.", "ln_1."),
    ),
    top=(("embed_tokens.", "wte."), ("norm.", "ln_f.")),
    on_every_stage=(*WITH_BIAS, "lm_head.bias"),
)
_OPT: Final = Described(
    ("OPTForCausalLM",),
    modules=(
        ("self_attn.o_proj.", "self_attn.out_proj."),
        ("mlp.up_proj.", "fc1."),
        ("mlp.down_proj.", "fc2."),
        ("input_layernorm.", "self_attn_layer_norm."),
        ("post_attention_layernorm.", "final_layer_norm."),
    ),
    top=(("positions.", "embed_positions."), ("norm.", "final_layer_norm.")),
    on_every_stage=(*WITH_BIAS, "positions.weight", "project_in.weight", "project_out.weight"),
    model="model.decoder.",
    sends=("hidden_states",),
)
_NEOX: Final = replace(
    OF_TRANSFORMERS,
    modules=(
        ("self_attn.query_key_value.", "attention.query_key_value."),
        ("self_attn.o_proj.", "attention.dense."),
        *_IN_FALCON[2:],
    ),
    top=(("embed_tokens.", "embed_in."), ("norm.", "final_layer_norm.")),
)
_CHATGLM: Final = Described(
    ("ChatGLMForCausalLM",),
    modules=(*_IN_FALCON[:2], ("mlp.gate_up_proj.", "mlp.dense_h_to_4h."), ("mlp.down_proj.", "mlp.dense_4h_to_h.")),
    top=(("embed_tokens.", "embedding."), ("norm.", "encoder.final_layernorm.")),
    on_every_stage=EVERYTHING,
    model="transformer.",
    layers="encoder.layers",
    sends=("hidden_states",),
)
_EXAONE: Final = Described(
    ("ExaoneForCausalLM",),
    modules=(
        ("self_attn.o_proj.", "attn.attention.out_proj."),
        ("self_attn.", "attn.attention."),
        ("input_layernorm.", "ln_1."),
        ("post_attention_layernorm.", "ln_2."),
        ("mlp.down_proj.", "mlp.c_proj."),
    ),
    top=(("embed_tokens.", "wte."), ("norm.", "ln_f.")),
    model="transformer.",
    layers="h",
)

_INTERNLM2: Final = Described(
    ("InternLM2ForCausalLM",),
    modules=(
        ("self_attn.qkv_proj.", "attention.wqkv."),
        ("self_attn.o_proj.", "attention.wo."),
        ("mlp.gate_up_proj.", "feed_forward.gate_up_proj."),
        ("mlp.down_proj.", "feed_forward.w2."),
        ("input_layernorm.", "attention_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
    ),
    top=(("embed_tokens.", "tok_embeddings."),),
    on_every_stage=EVERYTHING,
    head="output.",
    ungrouped=True,
    obstacle=without("bias"),
)

DESCRIBED: Final[Mapping[str, Described]] = {
    **dict.fromkeys(("ChatGLMModel", "ChatGLMForConditionalGeneration"), _CHATGLM),
    "ExaoneForCausalLM": _EXAONE,
    "FalconForCausalLM": _FALCON,
    "GPT2LMHeadModel": _GPT2,
    "GPTJForCausalLM": _GPTJ,
    "GPTNeoXForCausalLM": _NEOX,
    "OPTForCausalLM": _OPT,
    "InternLM2ForCausalLM": _INTERNLM2,
}
