"""Models around a language model in forms that no preset has, written directly into vLLM 0.33."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadmaster.audit.ranks import Rank, load
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.synth.quantised import FP8
from tests.integrations.vllm.golden import told
from tests.integrations.vllm.test_left import DIRECT, needs_0_33

pytestmark = [pytest.mark.vllm, needs_0_33]

ALONE: dict[str, Any] = {"language_model_only": True}


@pytest.mark.parametrize("rank", [Rank((0, 2)), Rank((1, 2), (1, 2))], ids=str)
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_gemma_3_in_its_published_names(prefix: str, rank: Rank, tmp_path: Path) -> None:
    preset = PRESETS["gemma-3"]
    family = preset.family_of(preset.config_of(tiny=True))
    spelling = next(s for s in family.spellings if str(s["embed"]).startswith(prefix))
    write_tiny(replace(preset, family=replace(family, spelling=spelling), extra={}), tmp_path)
    own = load(tmp_path, rank, load_format="auto", **ALONE).params
    assert told(load(tmp_path, rank, **DIRECT, **ALONE).params) == told(own)


def write_fp8(path: Path) -> None:
    """Write a Qwen3.5 with experts as its FP8 copies store them: one by one, and with plain routers and small projections."""
    preset = PRESETS["qwen3.5-moe"]
    config = preset.config_of(tiny=True)
    family = preset.family_of(config)
    one_by_one = next(s for s in family.spellings if str(s["moe.gate"]).startswith("model.language_model."))
    text = config["text_config"] | {
        "head_dim": 32,
        "hidden_size": 256,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "moe_intermediate_size": 256,
        "num_key_value_heads": 8,
        "shared_expert_intermediate_size": 256,
    }
    vision = {"depth": 1, "hidden_size": 256, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 256}
    plain = ("mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_a", "linear_attn.in_proj_b")
    layers = [f"model.language_model.layers.{i}" for i in range(text["num_hidden_layers"])]
    modules = [f"{layer}.{module}" for layer in (*layers, "mtp.layers.0") for module in plain]
    quantised = {**FP8, "modules_to_not_convert": ["lm_head", "mtp.fc", *modules]}
    write_tiny(
        replace(preset, family=replace(family, spelling=one_by_one)),
        path,
        overrides={"text_config": text, "vision_config": vision, "quantization_config": quantised},
    )


@pytest.mark.parametrize("rank", [Rank(tp=(1, 2)), Rank((1, 2), (1, 2), ep=True)], ids=str)
def test_qwen_3_5_with_fp8_experts_one_by_one(rank: Rank, tmp_path: Path) -> None:
    write_fp8(tmp_path)
    own = load(tmp_path, rank, load_format="auto", **ALONE).params
    assert any(name.endswith("in_proj_qkvz.weight_scale_inv") for name in own)
    assert told(load(tmp_path, rank, **DIRECT, **ALONE).params) == told(own)
