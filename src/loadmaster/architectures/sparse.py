"""Mixtures of experts in Llama's names, but for norms, a gate or sinks in attention, and the router: a few lines each.

AFMoE, Beam, Command with experts (Cohere-2), EXAONE-MoE, Flex-OLMo, Flint, Hy3, Kolibri-1, Laguna, Mellum-2, OLMoE. The MTP layer
of Hy3 is stored after the decoder layers: attention and experts; that of EXAONE-MoE apart, with an MLP. Both share the model's
embedding and head.

Sources: the classes of transformers 5.24 and its ``conversion_mapping.py``; ``hy_v3_mtp.py`` and ``exaone_moe_mtp.py``
in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.schema import Family, Param
from loadmaster.architectures.sparse_schema import TWO, Style, schema
from loadmaster.architectures.spelling import Spelling

_FOUR: Final = (*TWO, "pre_mlp_norm", "post_mlp_norm")
_ALONE: Final = {"shared." + part: f"mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")}

STYLES: Final[Mapping[str, Style]] = {
    "AfmoeForCausalLM": Style(
        norms=_FOUR,
        gate="element",
        dense=1,
        shared=2,
        names={"moe.router": "mlp.router.gate.weight", "moe.router_bias": "mlp.expert_bias"},
    ),
    "BeamForCausalLM": Style(
        norms=_FOUR,
        gate="element",
        gate_bias=True,
        dense=3,
        names={f"{when}_mlp_norm": f"{when}_feedforward_layernorm.weight" for when in ("pre", "post")},
    ),
    "Cohere2MoeForCausalLM": Style(norms=("input_norm",), qk_norm=None, router_bias=False, tied=True),
    "ExaoneMoeForCausalLM": Style(
        dense=1, shared=1, drafts="apart", names={"moe.router_bias": "mlp.e_score_correction_bias"}
    ),
    "FlexOlmoForCausalLM": Style(
        norms=("post_norm", "post_mlp_norm"),
        qk_norm="all",
        router_bias=False,
        names={"post_mlp_norm": "post_feedforward_layernorm.weight"},
    ),
    "FlintForCausalLM": Style(
        sinks=True,
        router_bias=False,
        mlp_only=(0, 1),
        names=_ALONE | {"attn.sinks": "self_attn.softmax_offset"},
    ),
    "HYV3ForCausalLM": Style(
        dense=1,
        shared=1,
        drafts="after",
        names={
            **{"moe.router": "mlp.router.gate.weight", "moe.router_bias": "mlp.expert_bias"},
            "mtp.norm": "final_layernorm.weight",
            **{f"shared.{part}": f"mlp.shared_mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
        },
    ),
    "Kolibri1ForCausalLM": Style(
        norms=(*TWO, "post_attn_norm", "post_mlp_norm"),
        names={"moe.router_bias": "moe.router.expert_bias", "post_mlp_norm": "post_ffn_norm.weight"},
    ),
    "LagunaForCausalLM": Style(
        gate="config",
        dense=1,
        names={
            **_ALONE,
            "attn.gate": "self_attn.g_proj.weight",
            "moe.router_bias": "mlp.experts.e_score_correction_bias",
        },
    ),
    "MellumForCausalLM": Style(router_bias=False),
    "OlmoeForCausalLM": Style(qk_norm="all", router_bias=False),
}
"""Architecture → how it differs."""

_MORE: Final = {
    **{f"{name}_norm": f"{name}_layernorm.weight" for name in ("pre_mlp", "post_mlp")},
    "post_attn_norm": "post_attn_norm.weight",
    "attn.gate": "self_attn.gate_proj.weight",
    "attn.gate_bias": "self_attn.gate_bias",
    "attn.sinks": "self_attn.sinks",
}
_SPELLING: Final[Spelling] = {
    **blocks.DECODER_SPELLING,
    **blocks.experts_spelling(),
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **blocks.DRAFT_SPELLING,
    **{name: blocks.LAYER + stored for name, stored in _MORE.items()},
}
_NATIVE: Final = (
    *blocks.DECODER_NATIVE,
    *blocks.EXPERTS_NATIVE,
    *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    *blocks.DRAFT_NATIVE,
    *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _MORE.items()),
)

FAMILIES: Final = tuple(
    Family(
        name=architecture.removesuffix("ForCausalLM").lower(),
        architectures=(architecture,),
        schema=partial(schema, style=style),
        spelling={**_SPELLING, **{name: blocks.LAYER + stored for name, stored in style.names.items()}},
        native=_NATIVE,
        waived=(blocks.INV_FREQ,),
        drafts=(blocks.draft_apart_spelling(blocks.DECODER_SPELLING),) if style.drafts == "apart" else (),
    )
    for architecture, style in STYLES.items()
)
