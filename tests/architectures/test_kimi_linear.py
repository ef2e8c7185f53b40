"""Kimi-Linear and Kimi-K3: counts and bytes as published, transformers' names, the bank that grows, and defects."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.parallel import ParallelLayout
from loadmaster.payload import survey_payload, verify_payload
from loadmaster.plan import build_plan, prove
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import Entry, inventory
from loadmaster.synth.models.kda import MXFP4
from loadmaster.synth.presets import Preset, merged
from loadmaster.testing import compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

BODY = "language_model.model.layers."
MOE = "block_sparse_moe."
K3, LINEAR = PRESETS["kimi-k3"], PRESETS["kimi-linear"]
TINY = K3.config_of(tiny=True)
FAMILY = find_family(TINY)


def tower() -> tuple[int, int]:
    """Tensors and elements of the vision tower, 27 blocks of 1024 whose heads have 1536 in all, and of the projector."""
    block = [3 * 1536 * 1024, 1024 * 1536, 4096 * 1024, 1024 * 4096, 1024, 1024]
    rest = [1024, 1024 * 3 * 14 * 14, 64 * 64 * 1024, 4096 * 4096, 7168 * 4096, 7168]
    return 27 * len(block) + len(rest), 27 * sum(block) + sum(rest)


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return [e for e in inventory(K3, K3.config_of(tiny=False)) if e.item]


def test_tensors_and_bytes_are_the_published_ones(entries: list[Entry]) -> None:
    count, elements = tower()
    assert len(entries) + count == 497_220
    assert sum(e.signature.num_bytes for e in entries) + 2 * elements == 1_560_860_324_864
    dtypes = [e.signature.dtype for e in entries]
    assert {d: dtypes.count(d) for d in set(dtypes)} == {"BF16": 2_122 - count, "F32": 506, "U8": 494_592}


def test_bytes_of_each_kind_of_layer_are_the_published_ones(entries: list[Entry]) -> None:
    routed = 15_722_348_544
    published = {0: (2_341_213_184, 0), 1: (1_267_744_256, routed), 3: (844_335_616, routed), 92: (844_335_616, routed)}
    for layer, expected in published.items():
        mine = [e for e in entries if e.name.startswith(f"{BODY}{layer}.")]
        experts = sum(e.signature.num_bytes for e in mine if f".{MOE}experts." in e.name)
        assert (sum(e.signature.num_bytes for e in mine) - experts, experts) == expected


def test_names_and_shapes_of_kimi_linear_are_those_of_transformers() -> None:
    """Without the dense layer: transformers would save its ``mlp`` as ``block_sparse_moe``, which no release has."""
    config = {**LINEAR.config_of(tiny=True), "first_k_dense_replace": 0}
    compare_with_transformers(find_family(config), config)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("kimi-k3") / "model"
    write_checkpoint(FAMILY, TINY, folder)
    return folder


def test_the_bank_of_snapshots_grows_with_the_cut(sound: Path) -> None:
    listed = list_boundaries(build_plan(open_checkpoint(sound)))
    assert [c.crosses for c in listed[1:5]] == [
        (("hidden_states", 96 * 2), ("residual", snapshots * 96 * 2)) for snapshots in (1, 1, 2, 2)
    ]
    assert all(c.refused is None for c in listed[1:5])


def test_zeros_after_the_last_head_are_waived_and_nothing_else(sound: Path) -> None:
    proof = prove(build_plan(open_checkpoint(sound), ParallelLayout(2, 2)))
    assert proof.findings == ()
    (waiver,) = proof.waivers
    assert (waiver.reason, waiver.num_tensors, waiver.num_bytes, waiver.partly) == (
        "zeros after the last row that the model has",
        3,
        3 * (128 - 16) * 4,
        True,
    )
    assert waiver.extent == "a part of 3 tensors, 1.3 KiB"


def test_a_rank_has_its_heads_of_the_decay(sound: Path) -> None:
    plan = build_plan(open_checkpoint(sound), ParallelLayout(1, 4))
    shapes = {s.name: s.shape for s in plan.rank(3).specs}
    assert shapes["layers.0.self_attn.A_log"] == (4,)
    assert shapes["layers.0.self_attn.g_proj.weight"] == (4 * 16, 96)


@pytest.mark.parametrize("row", [16, 127])
def test_verify_holds_the_rest_of_the_decay_to_be_zero(row: int, sound: Path, tmp_path: Path) -> None:
    assert verify_payload(survey_payload(open_checkpoint(sound))).findings == ()
    damaged = DamagedCheckpoint(Path(copytree(sound, tmp_path / "copy")))
    damaged.change(rf"{BODY}1\.self_attn\.A_log", lambda t: t + torch.tensor(np.eye(128)[row], dtype=torch.float32))
    (found,) = verify_payload(survey_payload(open_checkpoint(damaged.path))).findings
    assert (found.code, found.tensor) == ("value-not-zero", f"{BODY}1.self_attn.A_log")
    assert f"1 after the last row that the model has are not zero, first at [{row}]" in found.message


@pytest.mark.parametrize(
    ("pattern", "change", "code"),
    [
        (rf"{BODY}1\.self_attn\.A_log", lambda t: t[:16], "shape-mismatch"),
        (rf"{BODY}2\.mlp_res_norm\.weight", None, "tensor-missing"),
        (rf"{BODY}0\.self_attention_res_proj\.weight", lambda t: t[0], "shape-mismatch"),
        (r"language_model\.model\.output_attn_res_norm\.weight", None, "tensor-missing"),
        (rf"{BODY}2\.self_attn\.v_conv1d\.weight", lambda t: t[:240], "shape-mismatch"),
        (rf"{BODY}3\.self_attn\.g_proj\.weight", None, "tensor-missing"),
        (rf"{BODY}1\.{MOE}routed_expert_norm\.weight", lambda t: t[:32], "shape-mismatch"),
        (rf"{BODY}1\.{MOE}experts\.2\.w1\.weight_scale", None, "scale-missing"),
        (rf"{BODY}1\.{MOE}experts\.2\.w2\.weight_scale", lambda t: t.float(), "dtype-inadmissible"),
        (rf"{BODY}1\.{MOE}experts\.3\.w3\.weight_scale", lambda t: t[:, :1].contiguous(), "shape-mismatch"),
    ],
)
def test_a_defect_is_one_finding(pattern: str, change: Any, code: str, sound: Path, tmp_path: Path) -> None:
    (name,) = DamagedCheckpoint(sound).names(pattern)
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found = prove(build_plan(open_checkpoint(path), ParallelLayout(2, 2))).findings
    assert [(f.code, f.tensor, f.severity) for f in found] == [(code, name, "error")]


def test_what_is_not_described_is_refused_by_key() -> None:
    lists = TINY["text_config"]["linear_attn_config"]
    from_0 = {key: [layer - 1 for layer in lists[key]] for key in ("kda_layers", "full_attn_layers")}
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"linear_attn_config": {**lists, **from_0}}, ConfigError, "each of 5 layers once, counted from 1"),
        ({"moe_layer_freq": 2}, UnsupportedError, "moe_layer_freq other than 1"),
    ]
    for changes, error, says in refused:
        with pytest.raises(error, match=says):
            FAMILY.schema(FAMILY.describe(merged(TINY, {"text_config": changes})))
    group = merged(MXFP4, {"config_groups": {"group_0": {"weights": {"group_size": 16}}}})
    with pytest.raises(UnsupportedError, match="format 'mxfp4-pack-quantized'"):
        inventory(Preset("tiny", {}, {}, 1), merged(TINY, {"text_config": {"quantization_config": group}}))
