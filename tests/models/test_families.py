"""Every family that runs, on what only its config asks for: logits of a prompt and of decoding are those of transformers.

What all families have in common (stages, caches, batches) is tested on the dense ones and on DeepSeek's, in `test_forward`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.synth import PRESETS, Preset, write_tiny
from tests.models.pipeline import Pipeline, stages
from tests.models.reference import distance, transformers_model
from tests.models.test_forward import PROMPT

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
GEMMA = replace(
    PRESETS["gemma-3"],
    config={
        **PRESETS["gemma-3"].config_of(tiny=True)["text_config"],
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
    },
    tiny={},
    extra={},
)
"""Gemma-3 without vision: transformers makes the default vision tower, of 400 million parameters, for the other one."""

CASES: dict[str, tuple[str | Preset, dict[str, Any]]] = {
    "qwen2-moe": ("qwen2-moe", {}),
    "qwen2-moe, normalised": ("qwen2-moe", {"norm_topk_prob": True, "decoder_sparse_step": 2}),
    "qwen3-moe": ("qwen3-moe", {"norm_topk_prob": True}),
    "qwen3-moe, fp8 and a window": ("qwen3-moe-fp8", {"use_sliding_window": True, "sliding_window": 6}),
    "mixtral": ("mixtral", {}),
    "mixtral with a window": ("mixtral", {"sliding_window": 6, "rope_theta": 5e4}),
    "minimax-m2": ("minimax-m2", {"rotary_dim": 8, "scoring_func": "sigmoid", "attn_type_list": [1, 1, 1, 1]}),
    "glm-4.5": ("glm-4.5-air", {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.5}),
    "glm-4.5 in groups": (
        "glm-4.5-air",
        {"n_group": 4, "topk_group": 2, "use_qk_norm": False, "norm_topk_prob": False},
    ),
    "phi-4": ("phi-4", {}),
    "phi-3 with a window": ("phi-4", {"sliding_window": 6, "partial_rotary_factor": 0.5}),
    "olmo-2": ("olmo-2", {}),
    "olmo-3": ("olmo-3", {"sliding_window": 6, "rope_theta": 500000, "rope_scaling": YARN}),
    "gemma-3": (GEMMA, {"sliding_window_pattern": 3}),
    "gemma-3, scaled": (
        GEMMA,
        {"sliding_window_pattern": 2, "rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "gpt-oss": ("gpt-oss-bf16", {"sliding_window": 6}),
    "gpt-oss, clamped": ("gpt-oss-bf16", {"swiglu_limit": 0.25, "rope_scaling": YARN, "rope_theta": 150000}),
    "granite-moe": ("granite-moe", {"attention_multiplier": 0.125}),
    "granite-moe, scaled": (
        "granite-moe-shared",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 6.0, "attention_multiplier": 0.1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    preset, overrides = CASES[case]
    path = tmp_path / "tiny"
    write_tiny(PRESETS[preset] if isinstance(preset, str) else preset, path, overrides=overrides)
    model = transformers_model(path, tmp_path / "plain")
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    built = stages(path, (1, 3))
    assert distance(Pipeline(built).step(PROMPT, all_logits=True), expected) < 1e-5

    decoding = Pipeline(built, scattered=True)
    chunks = [PROMPT[:9], PROMPT[9:14], *([token] for token in PROMPT[14:])]
    rows = [decoding.step(chunk, all_logits=True) for chunk in chunks]
    assert distance(torch.cat(rows), expected) < 1e-5
    assert distance(Pipeline(built, scattered=True).preempted(PROMPT), expected) < 1e-5
