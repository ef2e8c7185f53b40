"""Drafts that are models with numbers and names of their own in vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.integrations.vllm.direct import Planned, prove_layout
from loadmaster.parallel import ParallelLayout
from tests.conftest import Tiny
from tests.integrations.vllm.golden import told, write
from tests.integrations.vllm.models import arguments_of
from tests.integrations.vllm.test_direct import built, put, reasons
from tests.integrations.vllm.test_left import DIRECT, needs_0_33

SHARED = {"model.embed_tokens.weight", "lm_head.weight"}
"""What vLLM replaces by the model's own where both are on one stage."""


def test_a_draft_that_counts_its_layers_from_0_has_the_names_of_its_model(tiny: Tiny) -> None:
    """Layer 4 of the plan, after four decoder layers, is layer 0 of the draft; what is beside it is outside the layers there."""
    layout = ParallelLayout(num_draft_layers=1)
    made = Planned(prove_layout(open_checkpoint(tiny("qwen3.8")), layout, torch.bfloat16), 0, is_draft=True)
    called = {spec.name.removeprefix("language_model.model.layers.4."): name for spec, name in made.params}
    outside = {name: called.pop(name) for name in [*called] if called[name].count(".") == 2}
    assert outside == {
        "eh_proj.weight": "model.fc.weight",
        "enorm.weight": "model.pre_fc_norm_embedding.weight",
        "hnorm.weight": "model.pre_fc_norm_hidden.weight",
        "shared_head.norm.weight": "model.norm.weight",
    }
    assert called == {name: f"model.layers.0.{name}" for name in called}
    assert {"self_attn.qkv_proj.weight", "mlp.down_proj.weight"} <= called.keys()


def test_a_draft_leaves_no_towers_to_vllm(tiny: Tiny) -> None:
    layout = ParallelLayout(num_draft_layers=1)
    plan = prove_layout(open_checkpoint(tiny("qwen3.8")), layout, torch.bfloat16)
    draft, model = Planned(plan, 0, is_draft=True), torch.nn.Module()
    of_layer = {name for _, name in draft.params}
    whole = built(Planned(plan, 0))
    for spec, name in draft.params:
        put(model, name, whole.get_parameter(spec.name))
    assert reasons(draft, model) == []
    assert draft.left(model) == []
    put(model, "model.extra", torch.nn.Parameter(torch.empty(1)))
    assert "model.extra" not in of_layer
    assert reasons(draft, model) == ["model.extra is not in the plan"]


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(1, 2), ep=True)], ids=str)
@pytest.mark.parametrize("preset", ["qwen3.8", "qwen3.5-moe"])
def test_a_draft_with_names_of_its_own_is_that_of_vllms_own_loader(preset: str, rank: Rank, tmp_path: Path) -> None:
    path, arguments = write(preset, tmp_path), {"draft": "mtp", **arguments_of(preset)}
    own, streamed, direct = (
        load(path, rank, **arguments, **way).params
        for way in ({"load_format": "auto"}, {"model_loader_extra_config": {"direct": False}}, DIRECT)
    )
    assert told(own) == told(streamed)
    assert own.keys() == direct.keys()
    assert {n for n in own if not torch.equal(own[n].view(torch.uint8), direct[n].view(torch.uint8))} == SHARED


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("preset", "rank", "said"),
    [
        ("qwen3.8", Rank((1, 2)), "model.embed_tokens.weight is not in the plan"),
        ("step-3.7-flash", Rank(), "a draft of Step3p5ForCausalLM is not described"),
        ("nemotron-3-super", Rank(), "a draft of NemotronHForCausalLM is not described"),
    ],
)
def test_other_drafts_are_streamed_and_those_of_vllms_own_loader(
    preset: str, rank: Rank, said: str, tmp_path: Path
) -> None:
    path, arguments = write(preset, tmp_path), {"draft": "mtp", **arguments_of(preset)}
    own, streamed = (load(path, rank, **arguments, **way).params for way in ({"load_format": "auto"}, {}))
    assert told(own) == told(streamed)
    with pytest.raises(UnsupportedError, match=said):
        load(path, rank, **arguments, **DIRECT)
