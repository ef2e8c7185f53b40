"""AliceAI, Domyn-Edge, K2-Horizon, Step-5, Moondream-3, Intern-S1-Pro, Aria, Bagel: cuts, how ranks divide them, defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LoadmasterError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.damage import Change, damaged_copy
from tests.architectures.test_text_models import MODELS

NAMES = ("AliceAIForCausalLM", "DomynEdgeForCausalLM", "K2HorizonForCausalLM", "Step5ForCausalLM", "HfMoondream")


def config_of(architecture: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "dtype": "bfloat16", **MODELS[architecture], **changes}


def schema_of(config: dict[str, Any]) -> Schema:
    family = find_family(config)
    return family.schema(family.describe(config))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in NAMES}
    for name, path in paths.items():
        write_checkpoint(find_family(config_of(name)), config_of(name), path)
    return paths


def held(path: Path, layout: ParallelLayout, rank: int) -> dict[str, torch.Tensor]:
    return load_rank(prove(build_plan(open_checkpoint(path), layout)).require_proven(), rank).tensors


def test_a_stage_of_an_alice_needs_the_snapshots_so_far(written: dict[str, Path]) -> None:
    """One every two layers, the embedding the first: a stage that begins at layer 3 needs those of 0 and 2."""
    proof = prove(build_plan(open_checkpoint(written["AliceAIForCausalLM"]), ParallelLayout(2, layer_partition=(3, 1))))
    assert proof.proven
    assert list_boundaries(proof.plan)[3].crosses == (("hidden_states", 256), ("residual", 2 * 256))
    names = {s.name for s in proof.plan.rank(0).specs} | {s.name for s in proof.plan.rank(1).specs}
    assert {f"layers.{n}.self_attention_res_norm.weight" for n in range(4)} - names == {
        "layers.0.self_attention_res_norm.weight"
    }


def test_layers_of_a_domyn_have_heads_of_their_size(written: dict[str, Path]) -> None:
    shapes = {s.name: s.shape for s in build_plan(open_checkpoint(written["DomynEdgeForCausalLM"])).rank(0).specs}
    sizes = [16, 32, 16, 24]
    assert [shapes[f"layers.{n}.self_attn.k_norm.weight"] for n in range(4)] == [(size,) for size in sizes]
    assert [shapes[f"layers.{n}.self_attn.qkv_proj.weight"][0] for n in range(4)] == [16 * size for size in sizes]


def test_value_experts_of_a_k2_horizon_are_divided_by_heads_whatever_divides_the_others(
    written: dict[str, Path],
) -> None:
    path = written["K2HorizonForCausalLM"]
    stored = DamagedCheckpoint(path).tensor("model.layers.2.self_attn.v_experts.1.weight")
    tensors = held(path, ParallelLayout(1, 2, enable_expert_parallel=True), 1)
    assert torch.equal(tensors["layers.2.self_attn.v_experts.1.weight"], stored[32:])
    assert tensors["layers.2.mlp.experts.w13_weight"].shape == (2, 128, 128)
    assert "layers.0.self_attn.v_proj.weight" in tensors and "layers.2.self_attn.v_proj.weight" not in tensors


def test_groups_of_a_step5_indexer_stay_whole_and_several_ranks_hold_one(written: dict[str, Path]) -> None:
    """8 heads of 32 in 4 groups of 2: rank 5 of 8 has group 2, as rank 4 has; the key's head is on all."""
    path, layer = written["Step5ForCausalLM"], "layers.0.self_attn.sparse_indexer_"
    stored = {part: DamagedCheckpoint(path).tensor(f"model.{layer}{part}.weight") for part in "qkw"}
    for rank in (4, 5):
        tensors = held(path, ParallelLayout(1, 8), rank)
        assert torch.equal(tensors[layer + "q.weight"], stored["q"][128:192])
        assert torch.equal(tensors[layer + "w.weight"], stored["w"][4:6])
        assert torch.equal(tensors[layer + "k.weight"], stored["k"])


def test_a_step5_draft_has_an_indexer_where_its_layer_has_full_attention(written: dict[str, Path]) -> None:
    proof = prove(build_plan(open_checkpoint(written["Step5ForCausalLM"]), ParallelLayout(num_draft_layers=1)))
    names = {s.name for s in proof.plan.rank(0).specs}
    assert proof.proven
    assert {n.partition(".self")[0] for n in names if n.endswith("sparse_indexer_w.weight")} == {"layers.0", "mtp.0"}


def test_every_stage_of_an_intern_s1_pro_has_the_coefficients_of_its_heads(tmp_path: Path) -> None:
    """4 heads of keys over 2 ranks of each of 2 stages, 6 frequencies each."""
    config = config_of("InternS1ProForCausalLM")
    write_checkpoint(find_family(config), config, tmp_path / "tiny")
    stored = DamagedCheckpoint(tmp_path / "tiny").tensor("model.rotary_emb.sin_coef")
    for rank in range(4):
        tensors = held(tmp_path / "tiny", ParallelLayout(2, 2), rank)
        assert torch.equal(tensors["rotary_emb.sin_coef"], stored[rank % 2 * 2 : rank % 2 * 2 + 2])
    assert stored.shape == (4, 6, 6)


def test_frequencies_that_are_not_given_are_those_whose_wave_fits_into_the_positions() -> None:
    """Of heads of 16: 8 frequencies 1, 10^-0.5, 0.1 …; those above 2 pi / 512 = 0.0123 are 4."""
    schema = schema_of(config_of("InternS1ProForCausalLM", rope_scaling=None, rope_theta=10_000))
    assert {t.name: t.shape for t in schema.top if t.name.startswith("rope.")} == {
        "rope.sin_coef": (4, 4, 4),
        "rope.cos_coef": (4, 4, 4),
    }


@pytest.mark.parametrize(
    ("architecture", "pattern", "change", "tensor"),
    [
        ("InternS1ProForCausalLM", r"rotary_emb\.cos_coef", lambda t: t[:2], "model.rotary_emb.cos_coef"),
        (
            "AriaTextForCausalLM",
            r"layers\.1\.mlp\.experts\.fc2\.weight",
            lambda t: t.transpose(1, 2),
            "model.layers.1.mlp.experts.fc2.weight",
        ),
    ],
)
def test_a_tensor_in_another_shape_is_one_finding(
    architecture: str, pattern: str, change: Change, tensor: str, tmp_path: Path
) -> None:
    config = config_of(architecture)
    write_checkpoint(find_family(config), config, tmp_path / "sound")
    path = damaged_copy(tmp_path / "sound", tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(2, 2))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [("shape-mismatch", tensor)]


def test_what_makes_images_in_a_bagel_is_left_unread(tmp_path: Path) -> None:
    llm = {**MODELS["SolarForCausalLM"], "qk_norm": True}
    config = {"architectures": ["BagelForConditionalGeneration"], "dtype": "bfloat16", "llm_config": llm}
    family = find_family(config)
    write_checkpoint(family, config, tmp_path / "bagel")
    inside = "language_model.model.layers.1.self_attn."
    DamagedCheckpoint(tmp_path / "bagel").copy(rf"^{inside}q_proj\.weight$", f"{inside}q_proj_moe_gen.weight")
    proof = prove(build_plan(open_checkpoint(tmp_path / "bagel"), ParallelLayout(1, 2)))
    assert proof.proven
    assert [(w.reason, w.num_tensors) for w in proof.waivers] == [("it generates images, which is not supported", 1)]
    assert "layers.1.self_attn.q_norm.weight" in {s.name for s in proof.plan.rank(0).specs}


@pytest.mark.parametrize("theta", [0, -10_000])
def test_a_base_of_frequencies_that_has_no_powers_is_refused(theta: int) -> None:
    with pytest.raises(ConfigError, match=f"rope_theta is {theta}, expected a number above 0"):
        schema_of(config_of("InternS1ProForCausalLM", rope_scaling=None, rope_theta=theta))


def test_a_moondream_without_a_config_has_the_sizes_of_its_class() -> None:
    schema = schema_of({"architectures": ["HfMoondream"], "config": {}})
    shapes = {(kind, t.name): t.shape for kind, tensors in schema.kinds.items() for t in tensors}
    assert schema.layers == ("dense",) * 4 + ("sparse",) * 20
    assert shapes["sparse", "moe.up"] == (1024, 2048) and shapes["dense", "mlp.up"] == (8192, 2048)
    assert shapes["dense", "tau.q"] == (32, 3 * 2048)


@pytest.mark.parametrize(
    ("architecture", "pattern", "change", "code", "tensor"),
    [
        (NAMES[0], r"layers\.3\.attn_res_norm_weight", None, "tensor-missing", "model.layers.3.attn_res_norm_weight"),
        (
            NAMES[0],
            r"layers\.1\.linear_attn\.a_log_bias",
            lambda t: t[:4],
            "shape-mismatch",
            "model.layers.1.linear_attn.a_log_bias",
        ),
        (
            NAMES[1],
            r"layers\.1\.attention\.k_norm",
            lambda t: t[:16],
            "shape-mismatch",
            "model.layers.1.attention.k_norm.weight",
        ),
        (
            NAMES[1],
            r"layers\.2\.post_feedforward_norm",
            None,
            "tensor-missing",
            "model.layers.2.post_feedforward_norm.weight",
        ),
        (
            NAMES[2],
            r"layers\.1\.self_attn\.v_experts\.2\.weight",
            None,
            "tensor-missing",
            "model.layers.1.self_attn.v_experts.2.weight",
        ),
        (
            NAMES[2],
            r"layers\.1\.self_attn\.v_router\.weight",
            lambda t: t[:2],
            "shape-mismatch",
            "model.layers.1.self_attn.v_router.weight",
        ),
        (
            NAMES[3],
            r"layers\.0\.self_attn\.sparse_indexer_k_norm\.bias",
            None,
            "tensor-missing",
            "model.layers.0.self_attn.sparse_indexer_k_norm.bias",
        ),
        (
            NAMES[3],
            r"layers\.0\.self_attn\.sparse_indexer_q\.weight",
            lambda t: t[:128],
            "shape-mismatch",
            "model.layers.0.self_attn.sparse_indexer_q.weight",
        ),
        (NAMES[4], r"blocks\.3\.attn\.tau\.alpha", None, "tensor-missing", "model.text.blocks.3.attn.tau.alpha"),
        (
            NAMES[4],
            r"blocks\.2\.mlp\.fc1\.weight",
            lambda t: t.flatten(0, 1),
            "shape-mismatch",
            "model.text.blocks.2.mlp.fc1.weight",
        ),
    ],
)
def test_a_defect_is_one_finding(
    architecture: str,
    pattern: str,
    change: Change | None,
    code: str,
    tensor: str,
    written: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = damaged_copy(written[architecture], tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(1, 2))).findings
    assert [(f.code, f.tensor) for f in found if f.code != "family-unchecked"] == [(code, tensor)]


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "says"),
    [
        (NAMES[0], {"linear_num_value_heads": 16}, ConfigError, "linear_num_value_heads is 16, expected 8, as of keys"),
        (NAMES[0], {"block_attn_res_block_size": None}, ConfigError, "block_attn_res_block_size"),
        (NAMES[2], {"mova_num_experts": 65}, UnsupportedError, "mova_num_experts is 65; supported: up to 64"),
        (
            NAMES[3],
            {"sparse_config": {"sparse_indexer_num_heads": 6, "index_tp_size": 4}},
            ConfigError,
            "config.json, sparse_config: sparse_indexer_num_heads 6 are not divided by 4 groups",
        ),
        (NAMES[4], {"config": {"text": {"moe": {"n_experts": "64"}}}}, ConfigError, "n_experts is '64'"),
    ],
)
def test_what_a_config_may_not_say_is_refused(
    architecture: str, changes: dict[str, Any], error: type[LoadmasterError], says: str
) -> None:
    with pytest.raises(error, match=says):
        schema_of(config_of(architecture, **changes))
