"""vLLM 0.33's target of models with recurrent layers: what is not described, and where stages and ranks are divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.targets.vllm_0_33 import VERSION
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LayoutError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from tests.integrations.vllm.text_recurrent import CASES


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("lfm2", {"tie_word_embeddings": False}, "the head is not tied to the embedding"),
        ("zamba2", {"tie_word_embeddings": False}, "the head is not tied to the embedding"),
        ("gemma-3n", {"tie_word_embeddings": False}, "the head is not tied to the embedding"),
        ("jamba", {"tie_word_embeddings": True}, "the head is tied to the embedding"),
        ("falcon-h1", {"attention_bias": True}, "attention_bias is true"),
        ("falcon-h1", {"mlp_bias": True}, "mlp_bias is true"),
        (
            "nemotron-puzzle",
            {"block_configs": [{"block_type": "mamba", "ssm_state_size": 20}]},
            "its Mamba-2 layers have sizes of their own",
        ),
    ],
)
def test_a_config_that_vllm_reads_otherwise_is_not_described(case: str, changes: dict[str, Any], said: str) -> None:
    config = CASES[case].config | changes
    family = find_family(config)
    with pytest.raises(UnsupportedError, match=f"is not described for vllm-0.33: {said}"):
        VERSION.target(family, family.describe(config))


@pytest.mark.parametrize("case", ["granite-4", "mamba-2", "gemma-3n", "zamba2"])
def test_what_vllm_does_not_divide_into_stages_is_not_planned_so(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CASES[case].write(tmp_path / "tiny"))
    with pytest.raises(LayoutError, match="can be divided over 1 at most"):
        build_plan(checkpoint, ParallelLayout(2), target="vllm-0.33")


def test_adapters_of_zamba2_are_divided_on_both_sides(tmp_path: Path) -> None:
    """Rank 8, a hidden size of 128, eight heads of 32 for both halves, and an MLP of 192."""
    checkpoint = open_checkpoint(CASES["zamba2"].write(tmp_path / "tiny"))
    plan = build_plan(checkpoint, ParallelLayout(1, 2), target="vllm-0.33")
    assert prove(plan).findings == ()
    shapes = {s.name.removeprefix("model.layers.3.shared_transformer."): s.shape for s in plan.rank(1).specs}
    assert shapes["self_attn.linear_q_adapter_list.3.A.weight"] == (4, 256)
    assert shapes["self_attn.linear_q_adapter_list.3.B.weight"] == (128, 8)
    assert shapes["feed_forward.gate_up_proj_adapter_list.3.A.weight"] == (4, 128)
    assert shapes["feed_forward.gate_up_proj_adapter_list.3.B.weight"] == (192, 8)
