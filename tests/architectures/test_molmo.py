"""Molmo-2: transformers' names but for the embedding, up before gate, rows of image tokens, and defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.molmo import MOLMO2
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing import FamilyFaults, check_loading, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy

TINY: dict[str, Any] = {
    "architectures": ["Molmo2ForConditionalGeneration"],
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "vocab_size": 320,
        "additional_vocab_size": 16,
        "qk_norm_type": "qwen3",
        "use_qk_norm": True,
    },
}
BLOCK = "model.transformer.blocks."


@pytest.mark.parametrize("kind", ["qwen3", "olmo"])
def test_names_and_shapes_are_those_of_transformers_but_for_the_embedding(kind: str) -> None:
    """It halves the table of both parts as it saves it, (320 + 16) / 2, where the release has 320 rows and 16."""
    config = TINY | {"text_config": TINY["text_config"] | {"qk_norm_type": kind}}
    with pytest.raises(FamilyFaults) as caught:
        compare_with_transformers(MOLMO2, config)
    assert caught.value.faults == tuple(
        f"schema: model.transformer.wte.{part} is [{rows}, 128], but [168, 128] in transformers"
        for part, rows in (("embedding", 320), ("new_embedding", 16))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("molmo") / "tiny"
    write_checkpoint(MOLMO2, TINY, made)
    return made


def test_every_rank_gets_its_bytes(tmp_path: Path) -> None:
    assert check_loading(MOLMO2, TINY, tmp_path / "tiny", layouts=[ParallelLayout(2, 2), ParallelLayout(1, 8)]) > 200


def test_up_is_stored_before_gate_and_is_held_after_it(folder: Path) -> None:
    plan = build_plan(open_checkpoint(folder), ParallelLayout(1, 2))
    held = load_rank(prove(plan).require_proven(), 1).tensors["layers.1.mlp.gate_up_proj.weight"]
    up, gate = DamagedCheckpoint(folder).tensor(f"{BLOCK}1.mlp.ff_proj.weight").chunk(2)
    assert torch.equal(held, torch.cat([gate[96:], up[96:]]))


def test_every_rank_of_the_first_stage_has_the_rows_of_image_tokens(folder: Path) -> None:
    plan = build_plan(open_checkpoint(folder), ParallelLayout(2, 2))
    shapes = [{s.name: s.shape for s in plan.rank(rank).specs if "embed" in s.name} for rank in range(4)]
    assert shapes == [{"embed_tokens.weight": (160, 128), "embed_tokens.new_embedding": (16, 128)}] * 2 + [{}, {}]


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (r"wte\.new_embedding", None, "tensor-missing", "model.transformer.wte.new_embedding"),
        (r"\.1\.mlp\.ff_proj", lambda t: t[:192], "shape-mismatch", f"{BLOCK}1.mlp.ff_proj.weight"),
        (r"\.2\.self_attn\.att_proj", lambda t: t[:128], "shape-mismatch", f"{BLOCK}2.self_attn.att_proj.weight"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str, change: Change | None, code: str, tensor: str, folder: Path, tmp_path: Path
) -> None:
    path = damaged_copy(folder, tmp_path / "copy", pattern, change)
    (finding,) = prove(build_plan(open_checkpoint(path))).findings
    assert (finding.code, finding.tensor) == (code, tensor)


def test_a_kind_of_norms_that_is_not_known_is_refused() -> None:
    config = TINY | {"text_config": TINY["text_config"] | {"qk_norm_type": "llama"}}
    with pytest.raises(ConfigError, match="qk_norm_type is 'llama', expected olmo or qwen3"):
        MOLMO2.schema(MOLMO2.describe(config))
