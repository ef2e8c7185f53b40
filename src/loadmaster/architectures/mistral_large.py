"""Mistral-Large-3 and Mistral-4: latent attention and routed experts, also in Mistral's own names.

They have DeepSeek-V3's tensors without a correction bias. Large-3 is published in Mistral's own names, without a prefix;
Mistral-4 in those of transformers, with all experts of a layer in one tensor. `mistral_large4` has the next one.

Sources: ``mistral4`` and ``conversion_mapping.py`` of transformers 5.24; ``mistral_large_3.py`` in
``vllm/model_executor/models``; ``vllm/transformers_utils/configs/mistral.py``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, deepseek
from loadmaster.architectures.mistral_names import COMMON, LAYER, VISION, gated_mlp
from loadmaster.architectures.schema import OF_VLLM, Family
from loadmaster.architectures.spelling import Spelling

_ATTENTION: Final = {
    **{"attn.q_direct": "wq", "attn.kv_direct": "wkv_a_with_mqa", "attn.kv_a": "wkv_a_with_mqa", "attn.o": "wo"},
    **{f"attn.{name}": name for name in ("q_a_norm", "kv_a_norm")},
    **{f"attn.{name}": f"w{name}" for name in ("q_a", "q_b", "kv_b")},
}
NAMES: Final[Spelling] = {
    **COMMON,
    **{name: f"{LAYER}attention.{stored}.weight" for name, stored in _ATTENTION.items()},
    "moe.router": LAYER + "gate.weight",
    **gated_mlp("moe", "experts.{expert}"),
    **gated_mlp("shared", "shared_experts"),
}
"""Mistral's own names, with latent attention and routed experts."""

MLA = Family(
    name="mistral_large",
    architectures=("Mistral4ForCausalLM", "MistralLarge3ForCausalLM"),
    schema=deepseek.schema,
    spelling={**deepseek.SPELLING, **blocks.stacked_experts_spelling()},
    variants=(deepseek.SPELLING, NAMES),
    native=deepseek.NATIVE,
    waived=(blocks.INV_FREQ, VISION),
    unchecked={"MistralLarge3ForCausalLM": OF_VLLM},
)
