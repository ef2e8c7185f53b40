"""Tied embeddings: the config's flag against the head that is there; the last stage gets a copy of its own."""

from __future__ import annotations

import pytest

from loadmaster.plan import build_plan
from tests.failures.conftest import Sound


@pytest.mark.parametrize("stages", [2, 4])
def test_a_tied_model_over_stages_has_a_copy_of_the_embedding_on_the_last(stages: int, sound: Sound) -> None:
    proof = sound("smollm2").prove(stages)
    assert proof.findings == ()
    specs = {s.name for s in build_plan(proof.plan.checkpoint, proof.plan.layout).rank(stages - 1).specs}
    assert "lm_head.weight" in specs
    assert [r.replica_bytes for r in proof.ranks] == [0] * (stages - 1) + [320 * 96 * 2]


@pytest.mark.parametrize("preset", ["smollm2", "qwen3"])
def test_an_untied_config_over_a_checkpoint_without_a_head_asks_whether_it_is_tied(preset: str, sound: Sound) -> None:
    damaged = sound(preset).config(tie_word_embeddings=False)
    if preset == "qwen3":
        damaged.drop("^lm_head")
    found = damaged.only(2)
    assert (found.code, found.tensor, found.ranks) == ("tensor-missing", "lm_head.weight", (1,))
    assert "tie_word_embeddings" in str(found.hint)


def test_a_head_that_is_stored_although_it_is_tied_is_waived_by_name(sound: Sound) -> None:
    proof = sound("qwen3").config(tie_word_embeddings=True).prove(2)
    assert proof.findings == ()
    assert [(w.reason, w.num_tensors) for w in proof.waivers] == [("tied to the embedding", 1)]


def test_a_tied_embedding_that_is_missing_touches_the_first_and_the_last_stage(sound: Sound) -> None:
    found = sound("smollm2").drop("embed_tokens").only(4)
    assert (found.code, found.tensor, found.ranks) == ("tensor-missing", "model.embed_tokens.weight", (0, 3))
    untied = sound("llama").drop("embed_tokens").only(4)
    assert untied.ranks == (0,)
