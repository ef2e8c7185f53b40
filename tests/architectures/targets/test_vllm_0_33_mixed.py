"""vLLM 0.33's target of models whose layers are of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.target import Target
from loadmaster.architectures.targets.vllm_0_33 import VERSION
from loadmaster.audit.case import ACCEPTED, Case
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.loader import LoadedRank, load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny


def config_of(preset: str) -> dict[str, Any]:
    return PRESETS[preset].config_of(tiny=True) | ACCEPTED.get(preset, {})


def target(preset: str) -> Target:
    config = config_of(preset)
    family = PRESETS[preset].family_of(config)
    return VERSION.target(family, family.describe(config))


def loaded(preset: str, path: Path, *sizes: int, rank: int = 0) -> LoadedRank:
    Case(preset, preset).write(path)
    plan = build_plan(open_checkpoint(path), ParallelLayout(*sizes), target="vllm-0.33")
    return load_rank(prove(plan).require_proven(), rank)


def test_a_language_model_inside_another_has_its_parameters_under_a_prefix() -> None:
    config = config_of("qwen3.8")
    alone, wrapper = "Qwen3_5ForCausalLM", {**PRESETS["qwen3.8"].config_of(tiny=True)}
    inside = PRESETS["qwen3.8"].family_of(wrapper)
    whole = VERSION.target(inside, inside.describe(wrapper))
    assert config["architectures"] == [alone]
    language = target("qwen3.8")
    assert (language.layer, whole.layer) == ("model.layers.{layer}", "language_model.model.layers.{layer}")
    own = {p.name: (p.stage, p.otherwise) for p in whole.params if p.stage}
    assert own == {
        "language_model.model.embed_tokens.weight": ("every", None),
        "language_model.model.norm.weight": ("last", None),
        "language_model.lm_head.weight": ("last", "language_model.model.embed_tokens.weight"),
    }
    in_blocks = [[p for p in made.params if p.name.startswith("{block}.")] for made in (whole, language)]
    assert in_blocks[0] == in_blocks[1]


@pytest.mark.parametrize(
    ("preset", "changes", "said"),
    [
        ("qwen3-next", {"tie_word_embeddings": True}, "the head is tied to the embedding"),
        ("qwen3.8", {"attention_bias": True}, "attention_bias is true"),
        ("qwen3.8", {"attn_output_gate": False}, "attn_output_gate is false"),
    ],
)
def test_a_config_that_vllm_reads_otherwise_is_not_described(preset: str, changes: dict[str, Any], said: str) -> None:
    config = config_of(preset) | changes
    family = PRESETS[preset].family_of(config)
    with pytest.raises(UnsupportedError, match=f"is not described for vllm-0.33: {said}"):
        VERSION.target(family, family.describe(config))


def test_keys_that_serve_as_values_are_read_twice_and_the_proof_knows_it(tmp_path: Path) -> None:
    """Layer 5 of 6 is full: 8 heads of 32 for queries, 2 for keys, and no values. The others have 4 heads of 16 for both."""
    made = loaded("gemma-4-26b-a4b", tmp_path)
    full, sliding = (made.tensors[f"model.layers.{layer}.self_attn.qkv_proj.weight"] for layer in (5, 4))
    assert (full.shape, sliding.shape) == ((256 + 64 + 64, 96), (128 + 64 + 64, 96))
    assert torch.equal(full[256:320], full[320:])
    assert not torch.equal(sliding[128:192], sliding[192:])


def test_layers_that_share_a_kv_cache_have_queries_alone(tmp_path: Path) -> None:
    """Layers 5 to 9 of 10 read the cache of layer 3 or 4."""
    made = loaded("gemma-4-e2b", tmp_path)
    attention = {n.split(".")[4] for n in made.tensors if n.startswith("model.layers.9.self_attn.")}
    assert attention == {"q_proj", "o_proj", "q_norm"}
    assert "model.layers.4.self_attn.qkv_proj.weight" in made.tensors
    assert "model.layers.4.self_attn.q_proj.weight" not in made.tensors


def test_what_vllm_divides_otherwise_is_divided_so(tmp_path: Path) -> None:
    """OLMo's norms of all heads are whole on each rank, and Gemma-4's projection of 10 layers x 8 is cut by rows."""
    norms = loaded("olmo-2", tmp_path / "olmo", 1, 2, rank=1).tensors
    assert norms["model.layers.0.self_attn.q_norm.weight"].shape == (128,)
    half = loaded("gemma-4-e2b", tmp_path / "gemma", 1, 2, rank=1).tensors["model.per_layer_model_projection.weight"]
    path = open_checkpoint(tmp_path / "gemma")
    whole = load_rank(prove(build_plan(path)).require_proven(), 0).tensors["per_layer_model_projection.weight"]
    assert torch.equal(half, whole[40:])


def test_what_vllm_computes_has_the_shape_and_format_that_it_has_there(tmp_path: Path) -> None:
    made = loaded("nemotron-3-super", tmp_path, 1, 2, rank=1).tensors["model.layers.0.mixer.A"]
    assert (made.shape, made.dtype) == ((4,), torch.float32)
    assert target("nemotron-3-super").computed == ("{block}.mixer.A",)


def test_mixers_of_qwen4_exp_have_a_multiple_of_16_rows_and_indexers_are_beside_the_keys(tmp_path: Path) -> None:
    preset = PRESETS["qwen3.8-flash-next"]  # 24 rows and 4 streams
    write_tiny(preset, tmp_path)
    plan = build_plan(open_checkpoint(tmp_path), ParallelLayout(1, 2), target="vllm-0.33")
    held = load_rank(prove(plan).require_proven(), 1).tensors
    block = "language_model.model.layers.3."
    mixer = held[f"{block}mlp_hyper_connection.input_mix_weight_down_block_inject.weight"]
    assert mixer.shape == (32, 256)
    assert mixer[27].any() and not mixer[28:].any()
    heads, keys, head, indexer = 2 * 8 // 2, 2 // 2, 16, (4 + 1) * 16  # queries with gates; every rank has the indexer
    assert held[f"{block}self_attn.qkv_proj.weight"].shape == ((heads + 2 * keys) * head + indexer, 64)


def test_ling_3_is_described_without_compressed_queries(tmp_path: Path) -> None:
    held = loaded("ling-3.0-flash", tmp_path, 1, 2, rank=1).tensors
    linear, latent = "model.layers.0.self_attn.", "model.layers.1.self_attn."
    assert held[f"{linear}A_log"].shape == (1, 1, 4, 1)
    assert held[f"{linear}qkvb_proj.weight"].shape == (3 * 64 + 4, 96)
    assert held[f"{linear}k_conv1d.weight"].dtype == held["model.layers.1.mlp.gate.weight"].dtype == torch.float32
    assert {f"{linear}o_proj.weight", f"{latent}dense.weight"} <= held.keys()
    preset = PRESETS["ling-3.0-flash"]
    config = config_of("ling-3.0-flash") | {"q_lora_rank": 48}
    family = preset.family_of(config)
    with pytest.raises(UnsupportedError, match="queries are compressed"):
        VERSION.target(family, family.describe(config))
