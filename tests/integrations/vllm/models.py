"""Tiny models that vLLM takes: presets, and what makes it accept their configs."""

from typing import Any

from loadmaster.audit import accepted
from loadmaster.audit.case import ACCEPTED as OVERRIDES

FIRST = ("llama", "qwen3", "smollm2", "qwen3-moe", "deepseek-v3", "glm-5.1-fp8")
ACCEPTED: dict[str, dict[str, Any]] = {preset: OVERRIDES.get(preset, {}) for preset in FIRST}
"""Presets that are compared on every layout."""

MORE = (
    *("glm-5.2-fp8", "deepseek-v3.2", "kimi-k2", "minimax-m2"),
    *("llama-fp8-static", "llama-w4a16-asym", "llama-awq", "llama-gptq"),
    *("qwen2", "qwen2-moe", "qwen3-next", "mixtral", "mixtral-fp8-static", "glm-4.5-air", "gpt-oss-bf16", "phi-4"),
    *("mistral", "granite-moe", "granite-moe-shared", "olmo-2", "olmo-3"),
)
OTHERS: dict[str, dict[str, Any]] = {preset: OVERRIDES.get(preset, {}) for preset in MORE}
"""More that vLLM builds on a CPU: fused and stacked as stored, padded, packed, with recurrent layers, with defaults."""

WRAPPED: dict[str, dict[str, Any]] = {
    "qwen3.8": {},
    "qwen3.5-moe": {},
    "gemma-4-26b-a4b": {"vision_config": {"model_type": "gemma4_vision"}},
    "gemma-4-e2b": {"vision_config": {"model_type": "gemma4_vision"}},
    "llama-4": {},
    **accepted.WRAPPED,
}
"""Models around a language model, and changes to their tiny configs. Towers have published sizes: vLLM leaves them out."""


def arguments_of(preset: str) -> dict[str, Any]:
    """Return vLLM's arguments for a preset."""
    alone = {"language_model_only": True} if preset in WRAPPED else {}
    return {**alone, **({"trust_remote_code": True} if preset in accepted.CODE else {})}
