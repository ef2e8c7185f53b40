"""Models of vLLM 0.33's registry without a target: tiny checkpoints, streamed, against what vLLM's own loader makes of them.

What vLLM holds is also what is planned for the rank, but for parameters that it computes, converts or fuses: these are named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadError
from loadmaster.integrations.vllm.installed import find_vllm
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.test_text_models import DENSE, MODELS, PLAIN
from tests.architectures.test_wrappers import GDN

INSTALLED = find_vllm()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        (INSTALLED and INSTALLED.target) != "vllm-0.33", reason="vLLM 0.33 has them: make test-vllm-cuda"
    ),
]

ROPE = {"rope_type": "default", "rope_theta": 1e4}
EXPERTS = {
    "num_experts": 8,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "num_experts_per_tok": 2,
}


@dataclass(frozen=True)
class Case:
    """A config, what vLLM wants in it besides, vLLM's arguments, and endings of the parameters that it holds otherwise."""

    config: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    otherwise: tuple[str, ...] = ()


def of(architecture: str, model_type: str, **changes: Any) -> dict[str, Any]:
    own = MODELS.get(architecture, {})
    return {"architectures": [architecture], "model_type": model_type, "dtype": "bfloat16", **own, **changes}


DRAFT = {"draft": "mtp"}
LANGUAGE_ONLY = {"language_model_only": True}
CASES = {
    "hrm-text": Case(of("HrmTextForCausalLM", "hrm_text")),
    "iquest-loopcoder": Case(of("IQuestLoopCoderForCausalLM", "qwen2"), {"rope_theta": 1e4}),
    "exaone-4.5's draft": Case(
        of(
            "Exaone4_5_ForConditionalGeneration",
            "exaone4_5",
            num_nextn_predict_layers=1,
            text_config={**DENSE, "model_type": "exaone4", "layer_types": ["full_attention"] * 4},
            vision_config={"depth": 1},
        ),
        {"vocab_size": 320},
        DRAFT,
        otherwise=("model.fc.weight",),
    ),
    "bagel": Case(
        of("BagelForConditionalGeneration", "bagel", llm_config={**PLAIN, "qk_norm": True, "model_type": "qwen2"}),
        {"vit_config": {"hidden_size": 96, "num_hidden_layers": 1}},
        LANGUAGE_ONLY,
    ),
    "alpamayo-2": Case(
        of(
            "Alpamayo2Super",
            "alpamayo2_super",
            vlm_config={
                "text_config": {
                    **{**DENSE, "model_type": "qwen3_vl_text"},
                    "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
                }
            },
        ),
        engine=LANGUAGE_ONLY,
    ),
    "intern-s2-preview": Case(
        of(
            "InternS2PreviewForConditionalGeneration",
            "qwen3_5_moe",
            text_config={**GDN, **EXPERTS, "model_type": "qwen3_5_moe_text"},
        ),
        engine=LANGUAGE_ONLY,
        otherwise=("linear_attn.A_log",),  # converted to F32
    ),
    "glm-ocr": Case(
        of(
            "GlmOcrForConditionalGeneration",
            "glm_ocr",
            text_config={**DENSE, "model_type": "glm_ocr_text", "pad_token_id": 0},
        ),
        engine=LANGUAGE_ONLY,
    ),
}


def write(case: Case, path: Path) -> Path:
    write_checkpoint(find_family(case.config), case.config, path)
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | case.more))
    return path


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("name", CASES)
def test_what_is_streamed_is_what_vllms_own_loader_makes_and_what_is_planned(name: str, tmp_path: Path) -> None:
    case, rank = CASES[name], Rank(tp=(1, 2))
    path = write(case, tmp_path / "tiny")
    own, streamed = (
        load(path, rank, load_format=way, skip_tokenizer_init=True, **case.engine).params
        for way in ("auto", "loadmaster")
    )
    assert own.keys() == streamed.keys()
    assert [n for n in own if not torch.equal(raw(own[n]), raw(streamed[n]))] == []
    layout = ParallelLayout(1, 2, num_draft_layers=1 if case.engine == DRAFT else 0)
    plan = prove(build_plan(open_checkpoint(path), layout)).require_proven()
    planned = {raw(tensor).numpy().tobytes() for tensor in load_rank(plan, 1).tensors.values()}
    unlike = {n for n, tensor in own.items() if raw(tensor).numpy().tobytes() not in planned}
    assert {n for n in unlike if not (case.otherwise and _numbered(n).endswith(case.otherwise))} == set()


def _numbered(name: str) -> str:
    """Return a name with its numbers as ``#``."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def test_vllms_own_loader_of_dbrx_does_not_find_its_experts(tmp_path: Path) -> None:
    """They have their own module in 0.33, and the loader looks for them where they were."""
    case = Case(of("DbrxForCausalLM", "dbrx", max_seq_len=256))
    path = write(case, tmp_path / "tiny")
    with pytest.raises(KeyError, match=r"blocks\.0\.ffn\.experts\.w13_weight"):
        load(path, load_format="auto", skip_tokenizer_init=True)
    with pytest.raises(LoadError, match=r"failed at transformer\.blocks\.0\.ffn\.experts\.mlp\.w1: KeyError"):
        load(path, load_format="loadmaster", skip_tokenizer_init=True)
