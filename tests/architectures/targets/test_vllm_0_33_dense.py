"""Models that vLLM 0.33 has otherwise than their config says: they are not described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.targets import find_target
from loadmaster.errors import UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.test_text_models import MODELS


@pytest.mark.parametrize(
    ("architecture", "change", "said"),
    [
        ("GemmaForCausalLM", {"attention_bias": True}, "attention_bias is true"),
        ("Gemma2ForCausalLM", {"tie_word_embeddings": False}, "the head is not the embedding"),
        ("CohereForCausalLM", {"attention_bias": True}, "attention_bias is true"),
        ("Ernie4_5ForCausalLM", {"use_bias": True}, "use_bias is true"),
        ("FalconForCausalLM", {"multi_query": False}, "each head of queries has its own keys"),
        ("DeepseekV3ForCausalLM", {"topk_method": "greedy"}, "topk_method is 'greedy', not 'noaux_tc'"),
        ("DeepseekV2ForCausalLM", {"tie_word_embeddings": True}, "the head is tied to the embedding"),
        ("InternLM3ForCausalLM", {"bias": True}, "bias is true"),
    ],
)
def test_what_vllm_has_otherwise_is_not_described(architecture: str, change: dict[str, Any], said: str) -> None:
    plain = {k: v for k, v in MODELS[architecture].items() if "bias" not in k}
    config = {"architectures": [architecture], **plain, "topk_method": "noaux_tc"}
    family = find_family(config)
    assert find_target("vllm-0.33", family, family.describe(config)).params
    with pytest.raises(UnsupportedError, match=rf"{architecture} is not described for vllm-0\.33: {said}"):
        find_target("vllm-0.33", family, family.describe(config | change))


def test_without_a_separate_head_every_stage_has_the_embedding() -> None:
    config = {"architectures": ["Gemma2ForCausalLM"], **MODELS["Gemma2ForCausalLM"]}
    family = find_family(config)
    params = {p.name: p.stage for p in find_target("vllm-0.33", family, family.describe(config)).params}
    assert params["model.embed_tokens.weight"] == params["model.norm.weight"] == "every"
    assert "lm_head.weight" not in params


def test_rows_that_are_packed_by_group_stay_as_stored_where_vllm_takes_them_apart_later(tmp_path: Path) -> None:
    """256 stored rows are taken for 128 of queries, and twice 64 of keys and values: rank 1 of 2 has half of each."""
    config = {"architectures": ["InternLM2ForCausalLM"], "dtype": "bfloat16", **MODELS["InternLM2ForCausalLM"]} | {
        "bias": False
    }
    checkpoint = write_checkpoint(find_family(config), config, tmp_path / "tiny")
    stored = DamagedCheckpoint(tmp_path / "tiny").tensor("model.layers.1.attention.wqkv.weight")
    plan = prove(build_plan(checkpoint, ParallelLayout(1, 2), target="vllm-0.33")).require_proven()
    held = load_rank(plan, 1).tensors["model.layers.1.attention.wqkv.weight"]
    assert torch.equal(held, torch.cat([stored[64:128], stored[160:192], stored[224:256]]))
