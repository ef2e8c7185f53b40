"""``demo/glm``: the checkpoint is whole, is what the scripts describe, and the package runs it as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import inventory
from tests.models.pipeline import Pipeline, stages
from tools.trained.config import SPECIAL, config
from tools.trained.export import load_stored
from tools.trained.model import Glm

GLM = Path(__file__).parents[2] / "demo" / "glm"


def test_it_fits_into_a_repository() -> None:
    assert sum(f.stat().st_size for f in GLM.iterdir()) < 12 * 2**20


def test_names_shapes_and_dtypes_are_those_of_glm_5_1_fp8() -> None:
    written = json.loads((GLM / "config.json").read_text())
    assert written == config()
    entries = {e.name: e.signature for e in inventory(PRESETS["glm-5.1-fp8"], written)}
    table = open_checkpoint(GLM).table
    assert {name: table.signatures[table.signature[i]] for i, name in enumerate(table.names)} == entries


def test_its_config_has_every_key_of_glm_5_1_fp8() -> None:
    assert PRESETS["glm-5.1-fp8"].config.keys() - config().keys() == set()


def test_its_tokenizer_has_as_many_tokens_as_its_embedding() -> None:
    tokenizer = Tokenizer.from_file(str(GLM / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config()["vocab_size"]
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3]
    text = 'And God said, "Let there be – light": £3 & naïve.\n\n'
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("layout", [ParallelLayout(4, num_draft_layers=1), ParallelLayout(2, 2, num_draft_layers=1)])
def test_its_plan_holds_with_the_mtp_layer(layout: ParallelLayout) -> None:
    plan = build_plan(open_checkpoint(GLM), layout)
    assert prove(plan).require_proven().layout == layout
    assert not plan.waivers


def test_the_package_runs_the_model_that_was_trained() -> None:
    tokenizer = Tokenizer.from_file(str(GLM / "tokenizer.json"))
    text = "And the LORD spake unto Moses, saying, Speak unto the children of Israel. It is a truth universally acknowledged. "
    tokens = tokenizer.encode(text * 4).ids
    assert len(tokens) > 1.5 * config()["index_topk"]  # so that the indexers leave tokens out
    model = Glm(config(), torch.float32).eval()
    load_stored(model, GLM)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0][0]
        dense = model(torch.tensor([tokens]), "dense").logits[0][0]
    logits = Pipeline(stages(GLM, (2, 3))).step(tokens, all_logits=True)
    differences, from_dense = (logits - expected).abs().amax(-1), (logits - dense).abs().amax(-1)
    topk = config()["index_topk"]
    assert differences[:topk].max() < 1e-4
    assert differences[topk:].median() < 1e-4  # single index scores are near-ties, and all later tokens see the choice
    assert from_dense[topk:].median() > 1e-2
