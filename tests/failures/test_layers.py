"""A layer missing under pipeline parallelism: `KeyError 'layers.0.self_attn.indexer.wk_weights_proj.weight'` and its kin.

A plan is made from each rank's own parameters outward, so a layer of another stage cannot be asked for; one that is in no
shard is one finding for the stage that holds it.
"""

from __future__ import annotations

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from tests.failures.conftest import Sound


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "glm-5.2-fp8", "deepseek-v3", "qwen3", "llama", "smollm2"])
def test_the_sound_checkpoints_have_no_findings_on_any_layout(preset: str, sound: Sound) -> None:
    checkpoint = sound(preset)
    for sizes in [(1,), (2,), (4,)] if preset == "smollm2" else [(1,), (2,), (4,), (2, 2), (1, 4)]:
        assert checkpoint.prove(*sizes).findings == (), sizes


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "qwen3"])
def test_a_stage_reads_its_own_layers_and_never_one_of_another_stage(preset: str, sound: Sound) -> None:
    plan = build_plan(open_checkpoint(sound(preset).path), ParallelLayout(4))
    for rank in range(4):
        derived = plan.rank(rank)
        assert derived.layers == (rank, rank + 1)
        names = {plan.checkpoint.table.names[i] for b in derived.groups for i in b.tensors.reshape(-1)}
        assert {n.split(".")[2] for n in names if ".layers." in n} == {str(rank)}
        assert {s.name.split(".")[1] for s in derived.specs if s.name.startswith("layers.")} == {str(rank)}


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "deepseek-v3", "qwen3", "llama"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_that_no_shard_holds_is_one_finding_for_the_stage_that_needs_it(
    layer: int, preset: str, sound: Sound
) -> None:
    found = sound(preset).drop(rf"^model\.layers\.{layer}\.").only(4)
    assert (found.code, found.severity, found.tensor) == ("layer-missing", "error", f"model.layers.{layer}.*")
    assert found.ranks == (layer,)
    assert f"no shard holds any tensor of layer {layer}" in found.message


def test_a_config_of_a_deeper_model_is_one_finding_that_counts_the_layers_and_asks_for_the_right_config(
    sound: Sound,
) -> None:
    found = sound("qwen3").config(num_hidden_layers=12).only(4)
    assert (found.code, found.tensor, found.ranks) == ("layer-missing", "model.layers.4.*", (1, 2, 3))
    assert "layers 4-11" in found.message
    assert "num_hidden_layers" in str(found.hint)


def test_a_config_of_a_shallower_model_is_a_finding_at_each_layer_left_over(sound: Sound) -> None:
    found = sound("llama").config(num_hidden_layers=3).only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "model.layers.3.*")
    assert "config.json describes 3 layers" in str(found.hint)


def test_the_attention_of_one_layer_missing_is_one_finding_at_that_module(sound: Sound) -> None:
    found = sound("llama").drop(r"layers\.1\.self_attn\.").only(2)
    assert (found.code, found.tensor, found.ranks) == ("tensor-missing", "model.layers.1.self_attn.*", (0,))
    assert "4 weights are missing (q_proj, k_proj, v_proj, o_proj)" in found.message
