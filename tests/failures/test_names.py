"""Names: what matches on neither side is a finding with the nearest name; a prefix added throughout is one defect."""

from __future__ import annotations

import pytest

from tests.failures.conftest import Sound


@pytest.mark.parametrize(
    ("old", "new", "put"),
    [
        (r"^model\.", "language_model.model.", "'language_model' added"),
        (r"^model\.", "", "'model' left out"),
        (r"^model\.", "transformer.", "'transformer' in place of 'model'"),
        (r"\.self_attn\.", ".attention.", "'attention' in place of 'self_attn'"),
    ],
)
@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "qwen3"])
def test_a_renaming_throughout_is_one_finding_that_says_how(
    preset: str, old: str, new: str, put: str, sound: Sound
) -> None:
    found = sound(preset).rename(old, new).only(2)
    assert (found.code, found.severity) == ("tensor-missing", "error")
    assert "more renamed in the same way" in found.message
    assert put in str(found.hint)
    assert found.ranks == (0, 1)


@pytest.mark.parametrize(("old", "new"), [("q_proj", "query"), ("o_proj", "out_proj"), ("input_layernorm", "ln_1")])
def test_one_tensor_renamed_is_one_finding_that_names_both(old: str, new: str, sound: Sound) -> None:
    found = sound("llama").rename(rf"layers\.2\.(.*){old}", rf"layers.2.\g<1>{new}").only(2)
    assert (found.code, found.ranks) == ("tensor-missing", (1,))
    assert old in str(found.tensor)
    assert new in str(found.hint)


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "deepseek-v3"])
@pytest.mark.parametrize(("old", "new"), [("eh_proj", "proj"), (r"mlp\.experts", "mlp.expert_list")])
def test_a_renaming_within_an_mtp_layer_that_nobody_asked_for_is_a_warning_and_leaves_the_plan_proven(
    old: str, new: str, preset: str, sound: Sound
) -> None:
    damaged = sound(preset)
    waivers = damaged.prove(2).waivers
    proof = damaged.rename(rf"layers\.4\.(.*){old}", rf"layers.4.\1{new}").prove(2)
    assert proof.proven
    assert [(f.code, f.severity, f.ranks) for f in proof.findings] == [("tensor-missing", "warning", ())]
    assert proof.waivers == waivers


def test_an_expert_stack_that_was_renamed_is_one_finding_with_the_shape_of_the_stack(sound: Sound) -> None:
    found = sound("gpt-oss").rename(r"layers\.2\.mlp\.experts\.down_proj_blocks", "layers.2.mlp.down_blocks").only(2)
    assert (found.code, found.tensor) == ("tensor-missing", "model.layers.2.mlp.experts.down_proj_blocks")
    assert "down_blocks" in str(found.hint)


def test_two_tensors_that_changed_names_are_not_taken_for_each_other(sound: Sound) -> None:
    damaged = sound("llama").rename(r"layers\.2\.(.*)k_proj", r"layers.2.\1key_proj")
    damaged.rename(r"layers\.2\.(.*)up_proj", r"layers.2.\1up")
    found = {f.tensor: str(f.hint) for f in damaged.prove(2).findings}
    assert found.keys() == {"model.layers.2.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight"}
    assert "key_proj" in found["model.layers.2.self_attn.k_proj.weight"]
    assert "mlp.up.weight" in found["model.layers.2.mlp.up_proj.weight"]


def test_a_name_that_is_like_no_other_is_told_without_a_hint(sound: Sound) -> None:
    damaged = sound("llama").copy(r"^model\.norm\.weight", "extra_state")
    found = damaged.only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "extra_state")


def test_a_tower_of_another_modality_is_one_finding(sound: Sound) -> None:
    damaged = sound("llama").copy(r"^model\.layers\.", "audio_tower.blocks.")
    found = damaged.only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "audio_tower.*")
    assert "36 tensors" in found.message
