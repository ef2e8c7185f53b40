"""Tiny models that vLLM takes: presets, and what makes it accept their configs."""

from typing import Any

from loadmaster.audit.accepted import RECENT
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

WRAPPED = ("qwen3.8", "qwen3.5-moe", "kimi-k3")
"""Models around a language model: vLLM builds towers of published sizes, so it is told to leave them out."""


BESIDE: dict[str, dict[str, Any]] = {
    "kimi-k3": {
        "preprocessor_config.json": {
            "media_proc_cfg": {
                "merge_kernel_size": 2,
                "temporal_merge_kernel_size": 4,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        }
    }
}
"""Preset → JSON files that vLLM reads beside the config, even where the towers are left out."""


def overrides_of(preset: str) -> dict[str, Any]:
    """Return the changes to a preset's tiny config that make vLLM accept it."""
    return {} if preset in WRAPPED and preset not in RECENT else OVERRIDES.get(preset, {})


def arguments_of(preset: str) -> dict[str, Any]:
    """Return vLLM's arguments for a preset."""
    return {"language_model_only": True} if preset in WRAPPED else {}
