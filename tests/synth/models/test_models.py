"""The presets: their names, and the kinds that they are listed under."""

from __future__ import annotations

from loadmaster.synth import PRESETS
from loadmaster.synth.models import KINDS


def test_every_preset_has_a_name_of_its_own() -> None:
    listed = [p.name for kind in KINDS for preset in kind.PRESETS for p in preset.in_formats()]
    assert listed == list(PRESETS)
    assert all(preset.name == name for name, preset in PRESETS.items())


def test_a_format_is_a_preset_of_its_own_with_the_quantisation_in_its_config() -> None:
    assert "quantization_config" not in PRESETS["qwen3"].config_of(tiny=True)
    assert PRESETS["qwen3-awq"].config_of(tiny=True)["quantization_config"]["group_size"] == 32
    assert PRESETS["qwen3-awq"].config_of(tiny=False)["quantization_config"]["group_size"] == 128
