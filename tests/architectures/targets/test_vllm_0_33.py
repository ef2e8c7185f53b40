"""vLLM 0.33's target, as a difference to 0.32's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadmaster.architectures.schema import Target
from loadmaster.architectures.targets import VLLM, newest_target, target_of_vllm, vllm_0_32, vllm_0_33
from loadmaster.architectures.targets.vllm import Version
from loadmaster.audit.case import ACCEPTED
from loadmaster.errors import UnsupportedError
from loadmaster.synth import PRESETS
from tests.integrations.vllm.golden import SINCE


def config_of(preset: str) -> dict[str, Any]:
    return PRESETS[preset].config_of(tiny=True) | ACCEPTED.get(preset, {})


def target(version: Version, preset: str) -> Target:
    config = config_of(preset)
    family = PRESETS[preset].family_of(config)
    return version.target(family, family.describe(config))


@pytest.mark.parametrize("preset", sorted(SINCE["vllm-0.32"]))
def test_what_0_32_describes_has_the_same_parameters_in_0_33(preset: str) -> None:
    assert replace(target(vllm_0_32.VERSION, preset), name="vllm-0.33") == target(vllm_0_33.VERSION, preset)


def test_a_language_model_inside_another_has_its_parameters_under_a_prefix() -> None:
    config = config_of("qwen3.8")
    alone, wrapper = "Qwen3_5ForCausalLM", {**PRESETS["qwen3.8"].config_of(tiny=True)}
    inside = PRESETS["qwen3.8"].family_of(wrapper)
    whole = vllm_0_33.VERSION.target(inside, inside.describe(wrapper))
    assert config["architectures"] == [alone]
    language = target(vllm_0_33.VERSION, "qwen3.8")
    assert (language.layer, whole.layer) == ("model.layers.{layer}", "language_model.model.layers.{layer}")
    own = {p.name: (p.stage, p.otherwise) for p in whole.params if p.stage}
    assert own == {
        "language_model.model.embed_tokens.weight": ("every", None),
        "language_model.model.norm.weight": ("last", None),
        "language_model.lm_head.weight": ("last", "language_model.model.embed_tokens.weight"),
    }
    assert [p for p in whole.params if not p.stage] == [p for p in language.params if not p.stage]


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("qwen3-next", {"tie_word_embeddings": True}, "the head is tied to the embedding"),
        ("qwen3.8", {"attention_bias": True}, "attention_bias is true"),
        ("qwen3.8", {"attn_output_gate": False}, "attn_output_gate is false"),
    ],
)
def test_a_config_that_vllm_reads_otherwise_is_not_described(preset: str, changes: dict[str, Any], said: str) -> None:
    config = config_of(preset) | changes
    family = PRESETS[preset].family_of(config)
    with pytest.raises(UnsupportedError, match=f"is not described for vllm-0.33: {said}"):
        vllm_0_33.VERSION.target(family, family.describe(config))


def test_the_newest_version_is_the_default_and_an_installed_one_has_its_own() -> None:
    assert newest_target("vllm") == "vllm-0.33"
    assert {version: target_of_vllm(version) for version in ("0.32.1", "0.33.0+cpu", "0.34.0", "0.3.2")} == {
        "0.32.1": "vllm-0.32",
        "0.33.0+cpu": "vllm-0.33",
        "0.34.0": None,
        "0.3.2": None,
    }
    assert all(version.name == name for name, version in VLLM.items())
