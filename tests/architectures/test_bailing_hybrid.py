"""Ling-3: transformers' names and shapes in each spelling, MXFP4 experts under Ling's names, and defects."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from loadmaster.architectures.bailing_hybrid import FAMILY, LATENT, LINEAR
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, InputError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy

TINY = PRESETS["ling-3.0-flash"].config_of(tiny=True)
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
MXFP4 = {**FP8, "routed_experts_quant_method": "mxfp4"}


@pytest.mark.parametrize("q_lora_rank", [None, 48])
def test_names_and_shapes_are_those_of_transformers(q_lora_rank: int | None) -> None:
    config = {**TINY, "architectures": ["BailingHybridForCausalLM"], "q_lora_rank": q_lora_rank}
    compare_with_transformers(FAMILY, config)


def test_the_defaults_of_transformers_are_42_layers_of_which_every_sixth_has_latent_attention() -> None:
    release = {k: v for k, v in TINY.items() if k not in ("first_k_dense_replace", "layer_group_size")}
    schema = FAMILY.schema(FAMILY.describe({**release, "num_hidden_layers": 42}))
    assert [i for i, kind in enumerate(schema.layers) if kind.endswith(LATENT)] == [5, 11, 17, 23, 29, 35, 41]
    assert [kind.split("/")[0] for kind in schema.layers] == ["dense"] * 2 + ["sparse"] * 40


def test_layers_after_the_last_whole_group_have_latent_attention() -> None:
    schema = FAMILY.schema(FAMILY.describe({**TINY, "num_hidden_layers": 5, "layer_group_size": 3}))
    assert [kind.split("/")[1] for kind in schema.layers] == [LINEAR, LINEAR, LATENT, LATENT, LATENT]


@pytest.mark.parametrize("gate", ["head_wise", "element_wise", None])
def test_the_tables_agree(gate: str | None) -> None:
    check_tables(FAMILY, {**TINY, "gated_attention_proj_granularity_type": gate, "q_lora_rank": 48})


@pytest.mark.parametrize("quantization", [None, FP8, MXFP4], ids=["bf16", "fp8", "mxfp4 experts"])
def test_every_rank_gets_its_bytes(quantization: dict[str, Any] | None, tmp_path: Path) -> None:
    config = TINY | ({"quantization_config": quantization} if quantization else {})
    layouts = [ParallelLayout(2, 2, num_draft_layers=1)]
    if quantization is None:
        layouts.append(ParallelLayout(1, 4, enable_expert_parallel=True))
    assert check_loading(FAMILY, config, tmp_path / "tiny", layouts=layouts) > 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("ling")
    write_checkpoint(FAMILY, TINY, made / "bf16")
    write_checkpoint(FAMILY, {**TINY, "quantization_config": MXFP4}, made / "mxfp4")
    return made


def found(path: Path) -> list[tuple[str, str | None]]:
    findings = prove(build_plan(open_checkpoint(path), ParallelLayout(2, num_draft_layers=1))).findings
    assert "family-unchecked" in {f.code for f in findings}
    return [(f.code, f.tensor) for f in findings if f.code != "family-unchecked"]


def test_sound_checkpoints_have_no_findings_and_every_cut_is_possible(folder: Path) -> None:
    assert found(folder / "bf16") == found(folder / "mxfp4") == []
    listed = list_boundaries(build_plan(open_checkpoint(folder / "bf16")))
    assert [(c.refused, c.crosses) for c in listed[1:4]] == [(None, (("hidden_states", 96 * 2),))] * 3


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv"])
def test_scales_of_mxfp4_experts_have_either_name(scale: str, folder: Path, tmp_path: Path) -> None:
    damaged = DamagedCheckpoint(Path(copytree(folder / "mxfp4", tmp_path / "copy")))
    damaged.rename(r"(?<=mlp\.experts\.)(\d+\.\w+)\.weight_scale(_inv)?$", rf"\1.{scale}")
    assert found(damaged.path) == []


@pytest.mark.parametrize(
    ("name", "pattern", "change", "code", "tensor"),
    [
        ("bf16", r"\.0\.attention\.A_log$", lambda t: t[:7], "shape-mismatch", "model.layers.0.attention.A_log"),
        ("bf16", r"\.1\.attention\.g_proj", None, "tensor-missing", "model.layers.1.attention.g_proj.weight"),
        ("bf16", r"\.1\.mlp\.gate\.expert_bias", None, "tensor-missing", "model.layers.1.mlp.gate.expert_bias"),
        ("bf16", r"\.4\.final_layernorm", None, "tensor-missing", "model.layers.4.final_layernorm.weight"),
        (
            "mxfp4",
            r"\.1\.mlp\.experts\.2\.up_proj\.weight_scale",
            None,
            "scale-missing",
            "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv",
        ),
    ],
)
def test_a_defect_is_one_finding(
    name: str, pattern: str, change: Change | None, code: str, tensor: str, folder: Path, tmp_path: Path
) -> None:
    assert found(damaged_copy(folder / name, tmp_path / "copy", pattern, change)) == [(code, tensor)]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"no_kda_lora": False}, UnsupportedError, "no_kda_lora"),
        ({"gated_attention_proj_granularity_type": "row"}, ConfigError, "granularity_type is 'row'"),
        ({"layer_types": ["full"] * 4}, ConfigError, "layer_types must give linear_attention or full_attention"),
    ],
)
def test_what_the_tables_cannot_say_is_refused(changes: dict[str, Any], error: type[InputError], says: str) -> None:
    with pytest.raises(error, match=says):
        FAMILY.schema(FAMILY.describe({**TINY, **changes}))
