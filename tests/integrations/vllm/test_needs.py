"""What is read of a checkpoint, decided from an outline of the model: no vLLM here."""

from __future__ import annotations

import pytest

from loadmaster.integrations.vllm.needs import Outline, Skip, reason_to_skip, sources

STAGE = Outline(
    placeholders=frozenset({"model.layers.0", "model.layers.1", "model.embed_tokens"}),
    elsewhere={"model.layers": frozenset({4, 10})},
    experts={"model.layers.2.mlp.experts": frozenset({0, 1})},
)
"""The second of two stages of a model of four layers, which holds two of its experts."""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.1.self_attn.q_proj.weight", Skip.STAGE),
        ("model.embed_tokens.weight", Skip.STAGE),
        ("model.layers.2.self_attn.q_proj.weight", None),
        ("model.layers.10.self_attn.q_proj.weight", Skip.LAYER),  # begins like layer 1
        ("model.layers.4.eh_proj.weight", Skip.LAYER),  # an MTP layer, which the main model does not have
        ("model.layers.5.self_attn.q_proj.weight", None),  # no one knows whose: the model's own loader is to say
        ("model.layers.2.mlp.experts.1.up_proj.weight", None),
        ("model.layers.2.mlp.experts.2.up_proj.weight", Skip.EXPERT),
        ("model.layers.2.mlp.experts.2.up_proj.weight_scale_inv", Skip.EXPERT),
        ("model.layers.2.mlp.experts.2.up_proj.input_scale", None),  # kernels may want the largest of all experts
        ("model.layers.2.mlp.shared_experts.2.up_proj.weight", None),
        ("model.layers.2.mlp.experts.gate_up_proj", None),  # all experts in one tensor
        ("model.layers.3.mlp.experts.7.up_proj.weight", None),  # nothing is known of these
        ("lm_head.weight", None),
        ("something.else.99.weight", None),
        ("layers.0.self_attn.q_proj.weight", None),  # a name that no module has: the model may know what it is
    ],
)
def test_a_tensor_is_left_out_only_where_it_surely_is_not_needed(name: str, reason: Skip | None) -> None:
    assert reason_to_skip(name, STAGE) is reason


def test_a_tied_head_may_be_filled_from_an_embedding_that_is_a_placeholder() -> None:
    tied = Outline(placeholders=STAGE.placeholders, copies_embedding=True)
    assert reason_to_skip("model.embed_tokens.weight", tied) is None
    assert reason_to_skip("model.layers.0.mlp.up_proj.weight", tied) is Skip.STAGE


def test_names_are_mapped_as_the_model_does_before_they_are_looked_at() -> None:
    def rename(name: str) -> str | None:
        return None if name.startswith("visual.") else name.replace("language_model.model", "model", 1)

    mapped = Outline(placeholders=STAGE.placeholders, rename=rename, is_unused=lambda name: name == "mtp.fc.weight")
    assert reason_to_skip("language_model.model.layers.0.mlp.up_proj.weight", mapped) is Skip.STAGE
    assert reason_to_skip("language_model.model.layers.2.mlp.up_proj.weight", mapped) is None
    assert reason_to_skip("visual.blocks.0.weight", mapped) is Skip.UNUSED
    assert reason_to_skip("mtp.fc.weight", mapped) is Skip.UNUSED


def test_a_draft_has_its_own_layers_alone_and_finds_its_experts_one_block_deeper() -> None:
    draft = Outline(
        elsewhere={"model.layers": frozenset(range(4))},
        experts={"model.layers.4.mtp_block.mlp.experts": frozenset({3})},
    )
    assert reason_to_skip("model.layers.0.mlp.up_proj.weight", draft) is Skip.LAYER
    assert reason_to_skip("model.layers.4.mlp.experts.0.up_proj.weight", draft) is Skip.EXPERT
    assert reason_to_skip("model.layers.4.mlp.experts.3.up_proj.weight", draft) is None
    assert reason_to_skip("model.embed_tokens.weight", draft) is None


def test_what_would_have_fed_a_parameter_is_told_by_parts_or_by_what_lies_nearest() -> None:
    stored = ["model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.self_attn.indexer.wk.weight"]
    assert sources("model.layers.0.mlp.experts.routed_experts.w13_weight", {}, stored) == [
        "stored below model.layers.0.mlp.experts: model.layers.0.mlp.experts.0.up_proj.weight"
    ]
    assert sources("model.layers.0.self_attn.indexer.wk_weights_proj.weight", {}, stored) == [
        "model.layers.0.self_attn.indexer.wk_weights_proj.weight: not in the checkpoint",
        "stored below model.layers.0.self_attn.indexer: model.layers.0.self_attn.indexer.wk.weight",
    ]
    assert sources("lm_head.weight", {}, []) == [
        "lm_head.weight: not in the checkpoint",
        "stored below the root: nothing",
    ]
