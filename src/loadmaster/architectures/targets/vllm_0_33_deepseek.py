"""vLLM 0.33's DeepSeek before the sparse ones, where 0.32's rows do not say all: architecture in config.json → row (`vllm`).

Queries that are not compressed have their own matrix beside that of the latents; models without latents, attention with heads.

Source: ``deepseek_v2`` in ``vllm/model_executor/models``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.targets import vllm_0_32
from loadmaster.architectures.targets.vllm import Described
from loadmaster.architectures.targets.vllm_0_32 import untied


def _v3(c: Config) -> str | None:
    """vLLM has a correction bias for one method only."""
    method = c.values.get("topk_method")
    return untied(c) if method == "noaux_tc" else f"topk_method is {method!r}, not 'noaux_tc'"


_V3: Final = replace(vllm_0_32.VERSION.described["DeepseekV3ForCausalLM"], obstacle=_v3)

DESCRIBED: Final[Mapping[str, Described]] = {
    "DeepseekForCausalLM": Described(("DeepseekForCausalLM",), obstacle=untied),
    "DeepseekV2ForCausalLM": Described(("DeepseekV2ForCausalLM",), obstacle=untied),
    "DeepseekV3ForCausalLM": _V3,
}
