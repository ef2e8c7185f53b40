"""vLLM 0.33's target, as a difference to 0.32's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadmaster.architectures.schema import Target
from loadmaster.architectures.targets import VLLM, newest_target, target_of_vllm, vllm_0_32, vllm_0_33
from loadmaster.architectures.targets.vllm import Version
from loadmaster.audit.case import ACCEPTED
from loadmaster.synth import PRESETS
from tests.integrations.vllm.golden import RANKS


def config_of(preset: str) -> dict[str, Any]:
    return PRESETS[preset].config_of(tiny=True) | ACCEPTED.get(preset, {})


def target(version: Version, preset: str) -> Target:
    config = config_of(preset)
    family = PRESETS[preset].family_of(config)
    return version.target(family, family.describe(config))


@pytest.mark.parametrize("preset", sorted(RANKS))
def test_what_0_32_describes_has_the_same_parameters_in_0_33(preset: str) -> None:
    assert replace(target(vllm_0_32.VERSION, preset), name="vllm-0.33") == target(vllm_0_33.VERSION, preset)


def test_the_newest_version_is_the_default_and_an_installed_one_has_its_own() -> None:
    assert newest_target("vllm") == "vllm-0.33"
    assert {version: target_of_vllm(version) for version in ("0.32.1", "0.33.0+cpu", "0.34.0", "0.3.2")} == {
        "0.32.1": "vllm-0.32",
        "0.33.0+cpu": "vllm-0.33",
        "0.34.0": None,
        "0.3.2": None,
    }
    assert all(version.name == name for name, version in VLLM.items())
