"""vLLM 0.33's models, as a difference to 0.32's: those that 0.32 describes have the same parameters.

Sources: the files named in `vllm_0_32`, those named in `vllm_0_33_mixed`, and ``vllm/models/deepseek_v4``, of 0.33.0.
"""

from __future__ import annotations

from math import inf
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Held, Param
from loadmaster.architectures.targets import vllm_0_32, vllm_0_33_mixed
from loadmaster.architectures.targets.vllm import Described, Version


def _deepseek_v4(c: Config) -> str | None:
    """vLLM has a correction bias for one method only, and biases for images only in models with vision."""
    if c.values.get("topk_method") != "noaux_tc":
        return f"topk_method is {c.values.get('topk_method')!r}, not 'noaux_tc'"
    return "it has vision" if c.size("vision_n_layers", 0, least=0) else None


_POWERS = Held("scale", "F8_E8M0", named="weight_scale_inv")

_DEEPSEEK_V4 = Described(
    ("DeepseekV4ForCausalLM",),
    drafts=("DeepSeekV4MTP",),
    on_every_stage=("hc_head_fn", "hc_head_base", "hc_head_scale"),
    modules=(
        ("ffn.experts.", "ffn.experts.routed_experts."),
        ("ffn.gate.bias", "ffn.gate.e_score_correction_bias"),
        ("norm.", "shared_head.norm."),  # of an MTP layer
    ),
    keep=(("ffn.gate.tid2eid", "I32"),),
    params=(
        Param("{block}.attn.fused_wqa_wkv.weight", ("attn.wq_a", "attn.wkv")),
        *(
            Param(f"{{block}}.attn.{of}.fused_wkv_wgate.weight", (f"attn.{of}.wkv", f"attn.{of}.wgate"))
            for of in ("compressor", "indexer.compressor")
        ),
        Param(
            "{block}.attn.attn_sink", ("attn.attn_sink",), sizes=(64, 128), filler=-inf
        ),  # FlashMLA's numbers of heads
    ),
    formats={
        "fp8_block": (Held("weight", "F8_E4M3"), _POWERS),
        "fp4": (Held("weight", "I8", held="U8"), Held("scale", "F8_E8M0", named="weight_scale", held="U8")),
    },
    methods={"fp8": "deepseek_v4_fp8"},
    sends=("hidden_states",),
    obstacle=_deepseek_v4,
    drafted=lambda c: not c.sizes("dspark_target_layer_ids"),
)

VERSION: Final = Version(
    "vllm-0.33",
    {
        **vllm_0_32.VERSION.described,
        **vllm_0_33_mixed.DESCRIBED,
        "DeepseekV4ForCausalLM": _DEEPSEEK_V4,
    },
)
