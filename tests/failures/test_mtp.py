"""MTP and draft layers: absent, stored in another precision, with and without an embedding and head of their own."""

from __future__ import annotations

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan
from tests.failures.conftest import Sound

MTP = ["glm-5.1-fp8", "deepseek-v3"]
LAYER = r"^model\.layers\.4\."


@pytest.mark.parametrize("preset", MTP)
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_a_draft_is_proven_on_the_last_stage_with_all_that_it_shares(stages: int, preset: str, sound: Sound) -> None:
    proof = sound(preset).prove(stages, drafts=1)
    assert proof.findings == ()
    assert [r.draft_layers for r in proof.ranks] == [()] * (stages - 1) + [(4,)]
    specs = {s.name: s for s in build_plan(proof.plan.checkpoint, proof.plan.layout).rank(stages - 1).specs}
    assert {"mtp.0.embed_tokens.weight", "mtp.0.shared_head.head.weight"} <= specs.keys()


@pytest.mark.parametrize("preset", MTP)
def test_a_conversion_without_the_mtp_layer_is_a_warning_unless_the_draft_is_asked_for(
    preset: str, sound: Sound
) -> None:
    damaged = sound(preset).drop(LAYER)
    unasked = damaged.only(2)
    assert (unasked.code, unasked.severity, unasked.ranks) == ("layer-missing", "warning", ())
    assert "only --speculative-config needs it" in str(unasked.hint)
    asked = damaged.only(2, drafts=1)
    assert (asked.code, asked.severity, asked.tensor, asked.ranks) == (
        "layer-missing",
        "error",
        "model.layers.4.*",
        (1,),
    )
    assert "MTP layer 4" in asked.message
    assert "remove --speculative-config" in str(asked.hint)


@pytest.mark.parametrize("part", ["embed_tokens", "shared_head.head"])
def test_a_draft_with_one_of_its_two_copies_lost_is_a_finding_and_never_an_uninitialised_parameter(
    part: str, sound: Sound
) -> None:
    found = sound("deepseek-v3").drop(LAYER + part).only(4, drafts=1)
    assert (found.code, found.tensor, found.ranks) == ("tensor-missing", f"model.layers.4.{part}.weight", (3,))


def test_a_draft_without_copies_of_its_own_is_given_the_model_s_on_the_last_stage(sound: Sound) -> None:
    damaged = sound("deepseek-v3").drop(LAYER + r"(embed_tokens|shared_head\.head)")
    proof = damaged.prove(2, drafts=1)
    assert proof.findings == ()
    specs = {s.name: s.alias for s in build_plan(open_checkpoint(damaged.path), proof.plan.layout).rank(1).specs}
    assert specs["mtp.0.shared_head.head.weight"] == "lm_head.weight"
    assert specs["mtp.0.embed_tokens.weight"] is None  # a copy: the first stage's embedding is not here
    assert proof.ranks[1].replica_bytes == 320 * 320 * 2


@pytest.mark.parametrize("part", ["eh_proj", "enorm", "hnorm", r"shared_head\.norm"])
def test_what_joins_the_draft_to_the_model_is_checked_by_name(part: str, sound: Sound) -> None:
    found = sound("glm-5.1-fp8").drop(LAYER + part).only(2, drafts=1)
    assert found.code == "tensor-missing"
    assert str(found.tensor).startswith("model.layers.4.")
    assert found.ranks == (1,)


@pytest.mark.parametrize("drafts", [0, 1])
def test_a_bf16_mtp_layer_in_a_quantised_checkpoint_is_followed_and_is_one_warning(drafts: int, sound: Sound) -> None:
    damaged = sound("glm-5.1-fp8").drop(LAYER + ".*weight_scale_inv")
    damaged.change(LAYER, lambda t: t.float().bfloat16() if t.dtype == torch.float8_e4m3fn else t)
    found = damaged.only(2, drafts=drafts)
    assert (found.code, found.severity, found.tensor) == ("format-contradiction", "warning", "model.layers.4.*")
    assert "22 tensors" in found.message
    assert "file says BF16; using the file" in found.message


def test_an_mtp_layer_that_the_config_keeps_silent_about_is_left_over_and_the_hint_names_the_key(sound: Sound) -> None:
    damaged = sound("glm-5.1-fp8").config(num_nextn_predict_layers=0)
    found = damaged.only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "model.layers.4.*")
    assert "num_nextn_predict_layers" in str(found.hint)
    with pytest.raises(LayoutError, match="1 MTP layer") as refused:
        build_plan(open_checkpoint(damaged.path), ParallelLayout(2, num_draft_layers=1))
    assert refused.value.code == "draft-missing"
