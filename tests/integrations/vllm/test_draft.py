"""Drafts that are models with numbers and names of their own in vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.integrations.vllm.direct import Planned
from loadmaster.integrations.vllm.proving import prove_layout
from loadmaster.parallel import ParallelLayout
from tests.conftest import Tiny
from tests.integrations.vllm.golden import told, write
from tests.integrations.vllm.models import arguments_of
from tests.integrations.vllm.test_direct import built, put, reasons
from tests.integrations.vllm.test_left import DIRECT, needs_0_33


def drafted(path: Path, num_drafts: int = 1) -> Planned:
    layout = ParallelLayout(num_draft_layers=num_drafts)
    return Planned(prove_layout(open_checkpoint(path), layout, torch.bfloat16), 0, is_draft=True)


def test_a_draft_that_counts_its_layers_from_0_has_the_names_of_its_model(tiny: Tiny) -> None:
    """Layer 4 of the plan, after four decoder layers, is layer 0 of the draft; what is beside it is outside the layers there."""
    made = drafted(tiny("qwen3.8"))
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
    draft, model = drafted(tiny("qwen3.8")), torch.nn.Module()
    whole = built(Planned(draft.plan, 0))
    for spec, name in draft.params:
        put(model, name, whole.get_parameter(spec.name))
    assert reasons(draft, model) == []
    assert draft.left(model) == []
    put(model, "model.extra", torch.nn.Parameter(torch.empty(1)))
    assert reasons(draft, model) == ["model.extra is not in the plan"]


def test_a_draft_of_two_blocks_is_two_layers_of_one_model(tiny: Tiny) -> None:
    """Nemotron's has a layer with attention, and one with experts and the norm at the end."""
    called = {name for _, name in drafted(tiny("nemotron-3-super")).params}
    assert {name.split(".")[2] for name in called} == {"0", "1"}
    assert {"model.layers.0.eh_proj.weight", "model.layers.1.final_layernorm.weight"} <= called


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("rank", [Rank(), Rank(tp=(1, 2), ep=True)], ids=str)
@pytest.mark.parametrize(
    ("preset", "shared"),
    [
        ("qwen3.8", {"model.embed_tokens.weight", "lm_head.weight"}),
        ("qwen3.5-moe", {"model.embed_tokens.weight", "lm_head.weight"}),
        ("step-3.7-flash", {"model.embed_tokens.weight"}),
        ("nemotron-3-super", set()),
        ("hy4-preview", {"model.embed_tokens.weight", "model.layers.6.shared_head.head.weight"}),
        ("ling-3.0-flash", {"model.embed_tokens.weight", "model.layers.4.shared_head.head.weight"}),
        ("glm-5.3-flash", set()),
        ("qwen3.8-flash-next", {"model.embed_tokens.weight", "lm_head.weight"}),
    ],
)
def test_a_draft_with_names_of_its_own_is_that_of_vllms_own_loader(
    preset: str, shared: set[str], rank: Rank, tmp_path: Path
) -> None:
    """But for what vLLM replaces by the model's own where both are on one stage."""
    path, arguments = write(preset, tmp_path), {"draft": "mtp", **arguments_of(preset)}
    own, streamed, direct = (
        load(path, rank, **arguments, **way).params
        for way in ({"load_format": "auto"}, {"model_loader_extra_config": {"direct": False}}, DIRECT)
    )
    assert told(own) == told(streamed)
    assert own.keys() == direct.keys()
    assert {n for n in own if not torch.equal(own[n].view(torch.uint8), direct[n].view(torch.uint8))} == shared


@needs_0_33
@pytest.mark.vllm
@pytest.mark.parametrize("preset", ["nemotron-3-super", "step-3.7-flash"])
def test_a_draft_on_a_last_stage_has_an_embedding_of_its_own(preset: str, tmp_path: Path) -> None:
    path = write(preset, tmp_path)
    own, direct = (load(path, Rank((1, 2)), draft="mtp", **way).params for way in ({"load_format": "auto"}, DIRECT))
    assert told(own) == told(direct)


@needs_0_33
@pytest.mark.vllm
def test_a_draft_that_would_share_an_embedding_over_stages_is_streamed(tmp_path: Path) -> None:
    """Every stage of Qwen3.5 has the embedding, which the plan gives to the draft; vLLM loads it a second time."""
    path, arguments = write("qwen3.8", tmp_path), {"draft": "mtp", **arguments_of("qwen3.8")}
    own, streamed = (load(path, Rank((1, 2)), **arguments, **way).params for way in ({"load_format": "auto"}, {}))
    assert told(own) == told(streamed)
    with pytest.raises(UnsupportedError, match=r"model\.embed_tokens\.weight is not in the plan"):
        load(path, Rank((1, 2)), **arguments, **DIRECT)
