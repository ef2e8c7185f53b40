"""Mixtures of experts of which vLLM 0.33 has no class: architecture in config.json → how it implements them (`vllm`).

It fuses the linear layers of transformers' class, and puts its own modules of experts into it.

Sources: ``transformers`` in ``vllm/model_executor/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.targets.vllm import BIAS, EXPERTS, WHOLE_NORMS, Described, without

_MIXTURE = Described(
    ("TransformersMoEForCausalLM",),
    modules=(
        EXPERTS,
        ("mlp.gate.", "mlp.experts.gate."),
        ("mlp.shared_experts.", "mlp.experts._shared_experts._layer.shared_experts."),
    ),
    sends=("hidden_states",),
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "Mistral4ForCausalLM": _MIXTURE,
    "Dots1ForCausalLM": replace(_MIXTURE, obstacle=without(BIAS)),
    "FlexOlmoForCausalLM": replace(
        _MIXTURE,
        modules=(EXPERTS, ("post_mlp_layernorm.", "post_feedforward_layernorm.")),
        placements=WHOLE_NORMS,
    ),
    "PhimoeForCausalLM": replace(
        _MIXTURE, modules=(EXPERTS, ("mlp.gate.", "mlp.router.")), obstacle=without("lm_head_bias")
    ),
    "HunYuanMoEV1ForCausalLM": replace(
        _MIXTURE,
        modules=(
            EXPERTS,
            ("mlp.gate.", "mlp.gate.wg."),
            ("mlp.shared_mlp.", "mlp.experts._shared_experts._layer.shared_experts."),
            ("self_attn.q_norm.", "self_attn.query_layernorm."),
            ("self_attn.k_norm.", "self_attn.key_layernorm."),
        ),
    ),
    "MellumForCausalLM": replace(_MIXTURE, modules=(EXPERTS, ("mlp.gate.", "mlp.experts.gate."))),
}
