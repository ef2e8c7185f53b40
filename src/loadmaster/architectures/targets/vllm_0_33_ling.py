"""vLLM 0.33's Ling-1 to 2.5, Sarvam-30B and Param-2: architecture in config.json → how vLLM implements it (`vllm`).

Sources: ``bailing_moe``, ``bailing_moe_linear``, ``bailing_moe_mtp``, ``sarvam`` and ``param2moe`` in
``vllm/model_executor/models``, of 0.33.0. `vllm_0_33_latent` has Ling-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.targets.vllm import CORRECTION, EXPERTS, F32_ROUTER, TIED, Described, without

_BAILING = Described(
    ("BailingMoeForCausalLM",),
    modules=(
        (CORRECTION, "mlp.gate.expert_bias"),
        EXPERTS,
        ("self_attn.qkv_proj.", "attention.query_key_value."),
        ("self_attn.q_norm.", "attention.query_layernorm."),
        ("self_attn.k_norm.", "attention.key_layernorm."),
        ("self_attn.o_proj.", "attention.dense."),
    ),
    top=(("embed_tokens.", "word_embeddings."),),
    keep=F32_ROUTER,
    obstacle=without("norm_head"),
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "BailingMoeForCausalLM": replace(_BAILING, keep=()),
    "BailingMoeV2ForCausalLM": replace(_BAILING, classes=("BailingMoeV2ForCausalLM",)),
    "SarvamMoEForCausalLM": replace(_BAILING, classes=("SarvamMoEForCausalLM",)),
    "Param2MoEForCausalLM": Described(
        ("Param2MoEForCausalLM",),
        modules=(
            EXPERTS,
            ("self_attn.q_norm.", "self_attn.q_layernorm."),
            ("self_attn.k_norm.", "self_attn.k_layernorm."),
        ),
        keep=F32_ROUTER,
        computed=(CORRECTION,),  # less their mean
        obstacle=without("use_bias"),
    ),
    "BailingMoeV2_5ForCausalLM": Described(
        ("BailingMoeV25ForCausalLM",),
        drafts=("BailingMoeV25MTPModel",),
        draft_block="",
        modules=(
            EXPERTS,
            (CORRECTION, "mlp.gate.expert_bias"),
            ("shared_head.norm.", "final_layernorm."),
        ),
        top=(("embed_tokens.", "word_embeddings."),),
        keep=F32_ROUTER,
        obstacle=without(TIED),
    ),
}
