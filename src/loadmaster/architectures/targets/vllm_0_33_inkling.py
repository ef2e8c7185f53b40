"""How vLLM 0.33 implements Inkling, alone and with its towers.

Gate and up of routed experts are held one after another, those of shared experts as they are stored; the shared experts' way back
is one matrix. The router has rows for a whole number of eights.

Sources: ``vllm/models/inkling`` of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loadmaster.architectures.schema import Param, by_rows
from loadmaster.architectures.targets.vllm import EXPERTS, NORM, Described

_INKLING = Described(
    ("InklingForConditionalGeneration", "InklingForCausalLM"),
    modules=(
        ("mlp.w13_dn.", "mlp.gate_up_proj."),
        ("mlp.w2_md.", "mlp.down_proj."),
        ("mlp.shared_experts.shared_", "mlp.sink_experts."),
        EXPERTS,
    ),
    top=(("embed.", "embed_tokens."),),
    on_every_stage=("embed.weight", "embed_norm.weight", NORM),
    keep=(("mlp.gate.global_scale", "F32"),),
    params=(
        Param("lm_head.weight", ("head",), stage="every"),
        Param("{block}.mlp.gate.weight", ("moe.router",), sizes=(8,)),
        Param("{block}.mlp.experts.routed_experts.w13_weight", ("moe.gate_up",), laid="apart"),
        Param("{block}.mlp.sink_experts.w2_weight", ("shared.down",), laid="beside"),
    ),
    placements={"embed": None, "attn_conv": by_rows(), "mlp_conv": by_rows()},
    formats={},
)

DESCRIBED: Final[Mapping[str, Described]] = dict.fromkeys(
    ("InklingForConditionalGeneration", "InklingForCausalLM"), _INKLING
)
