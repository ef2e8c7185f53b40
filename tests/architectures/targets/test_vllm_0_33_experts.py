"""vLLM 0.33's target of further mixtures of experts: what is not described, and what differs from the family's own parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.targets.vllm_0_33 import VERSION
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.integrations.vllm.text_experts import CASES


def shapes_of(path: Path, layout: ParallelLayout, rank: int) -> dict[str, tuple[int, ...]]:
    plan = build_plan(open_checkpoint(path), layout, target="vllm-0.33")
    assert [f.code for f in prove(plan).findings if f.code != "family-unchecked"] == []
    return {spec.name: spec.shape for spec in plan.rank(rank).specs}


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        ("mimo-v2-flash", {"attention_projection_layout": "fused_qkv"}, "attention_projection_layout is 'fused_qkv'"),
        ("ernie-4.5-moe", {"use_bias": True}, "use_bias is true"),
        ("ling", {"norm_head": True}, "norm_head is true"),
        ("olmoe", {"attention_bias": True}, "attention_bias is true"),
        ("phi-3.5-moe", {"lm_head_bias": True}, "lm_head_bias is true"),
        ("cohere-2-moe", {"tie_word_embeddings": False}, "the head is not tied to the embedding"),
        ("k2-horizon", {"rope_head_dim": 8}, "rope_head_dim is not head_dim"),
        ("longcat-flash", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ("afmoe", {"attention_bias": True}, "attention_bias is true"),
        ("mimo-v2-flash", {"add_full_attention_sink_bias": True}, "add_full_attention_sink_bias is true"),
    ],
)
def test_a_config_that_vllm_reads_otherwise_is_not_described(case: str, changes: dict[str, Any], said: str) -> None:
    config = CASES[case].config | changes
    family = find_family(config)
    with pytest.raises(UnsupportedError, match=f"is not described for vllm-0.33: {said}"):
        VERSION.target(family, family.describe(config))


def test_values_of_a_k2_horizon_are_fused_where_they_are_no_experts(tmp_path: Path) -> None:
    """8 heads of queries and 4 of keys and values, of 16 rows: 256 rows, or 192 without values; layer 0 has no experts."""
    shapes = shapes_of(CASES["k2-horizon"].write(tmp_path / "tiny"), ParallelLayout(), 0)
    attention = "model.layers.{}.self_attn.{}_proj.weight"
    assert shapes[attention.format(0, "qkv")] == (256, 128) and attention.format(0, "qk") not in shapes
    assert shapes[attention.format(1, "qk")] == (192, 128) and attention.format(1, "qkv") not in shapes


def test_norms_over_all_heads_are_whole_on_every_rank(tmp_path: Path) -> None:
    for case in ("olmoe", "flex-olmo"):
        shapes = shapes_of(CASES[case].write(tmp_path / case), ParallelLayout(1, 2), 1)
        assert shapes["model.layers.0.self_attn.q_norm.weight"] == (128,)
        assert shapes["model.layers.0.self_attn.qkv_proj.weight"] == (128, 128)


def test_a_norm_that_releases_of_a_x_k1_store_in_dense_layers_is_read(tmp_path: Path) -> None:
    config = CASES["a.x-k1"].config | {"first_k_dense_replace": 2}
    write_checkpoint(find_family(config), config, tmp_path / "tiny")
    stored, name = DamagedCheckpoint(tmp_path / "tiny"), "model.layers.{}.post_mlp_layernorm.weight"
    assert name.format(1) not in shapes_of(stored.path, ParallelLayout(), 0)
    for layer in (0, 1):
        stored.copy(r"\.2\.post_mlp_layernorm", f".{layer}.post_mlp_layernorm")
    assert shapes_of(stored.path, ParallelLayout(), 0)[name.format(1)] == (320,)


def test_shared_experts_of_an_inkling_are_beside_one_another(tmp_path: Path) -> None:
    """Two of 96 by 48, over two ranks; the router's 8 + 2 rows are filled up to 16, and convolutions are divided."""
    write_tiny(PRESETS["inkling"], tmp_path)
    shapes = {n.removeprefix("model.layers.2."): s for n, s in shapes_of(tmp_path, ParallelLayout(1, 2), 1).items()}
    assert shapes["mlp.sink_experts.w2_weight"] == (96, 2 * 24)
    assert shapes["mlp.sink_experts.w13_weight"] == (2, 48, 96)
    assert shapes["mlp.gate.weight"] == (16, 96)
    assert shapes["attn_sconv.weight"] == (48, 1, 4)
