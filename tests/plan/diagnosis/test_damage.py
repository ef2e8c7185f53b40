"""One tensor of a sound checkpoint removed, renamed, resized or retyped: the first and the last of each kind, in turn."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import Finding
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Proof, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import quick
from tests.loader.reference import Reference, differences
from tests.plan.damage import Damaged

SMALL = {"num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 2, "num_experts_per_tok": 1}
FAMILIES = {
    "glm-5.1-fp8": SMALL,
    "deepseek-v3": {**SMALL, "n_group": 1, "topk_group": 1},
    "qwen3": {"num_hidden_layers": 2},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
MTP = {"glm-5.1-fp8": 1, "deepseek-v3": 1, "qwen3": 0}


@pytest.fixture(params=quick(FAMILIES, "glm-5.1-fp8", "qwen3"), scope="module")
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Damaged]:
    path = tmp_path_factory.mktemp(request.param)
    write_tiny(PRESETS[request.param], path, overrides=FAMILIES[request.param], num_shards=2)
    return request.param, Damaged(path)


def _prove(path: Path, drafts: int) -> Proof:
    return prove(build_plan(open_checkpoint(path), ParallelLayout(2, num_draft_layers=drafts)))


def _all(proof: Proof, severity: str) -> list[Finding]:
    return [f for f in proof.findings if f.severity == severity]


def test_the_sound_checkpoint_has_no_findings(sound: tuple[str, Damaged]) -> None:
    family, damaged = sound
    assert _prove(damaged.path, MTP[family]).findings == ()
    assert _prove(damaged.path, 0).findings == ()


def test_removing_any_tensor_is_one_finding_at_that_tensor(sound: tuple[str, Damaged]) -> None:
    family, damaged = sound
    for file, name in damaged.samples():
        damaged.replace(file, {name: None})
        found = _all(_prove(damaged.path, MTP[family]), "error")
        assert [f.tensor for f in found] == [name], found
        assert found[0].code in ("tensor-missing", "scale-missing")
        assert found[0].ranks
        damaged.restore(file)


def test_renaming_any_tensor_is_one_finding_that_names_both(sound: tuple[str, Damaged]) -> None:
    family, damaged = sound
    for file, name in damaged.samples():
        renamed = name.replace("layers.", "layer.") if "layers." in name else name.replace(".weight", ".wight")
        damaged.replace(file, {name: None, renamed: damaged.shards[file][name]})
        found = _all(_prove(damaged.path, MTP[family]), "error")
        assert [f.tensor for f in found] == [name], found
        assert renamed in str(found[0].hint)
        damaged.restore(file)


def test_resizing_any_tensor_is_one_finding_at_that_tensor(sound: tuple[str, Damaged]) -> None:
    family, damaged = sound
    for file, name in damaged.samples():
        tensor = damaged.shards[file][name]
        damaged.replace(file, {name: tensor[:-1].clone()})
        found = _all(_prove(damaged.path, MTP[family]), "error")
        assert [(f.code, f.tensor) for f in found] == [("shape-mismatch", name)], found
        damaged.restore(file)


def test_without_mtp_the_draft_layer_is_still_checked_and_its_defects_are_warnings(sound: tuple[str, Damaged]) -> None:
    family, damaged = sound
    if not MTP[family]:
        pytest.skip("this model has no MTP layer")
    layer = f"model.layers.{SMALL['num_hidden_layers']}."
    for file, name in damaged.names():
        if not name.startswith(layer):
            continue
        damaged.replace(file, {name: None})
        proof = _prove(damaged.path, 0)
        assert proof.proven
        assert [f.tensor for f in _all(proof, "warning")] == [name]
        damaged.restore(file)


@pytest.mark.parametrize("sound", quick(FAMILIES, "qwen3"), indirect=True)
def test_retyping_any_tensor_loads_as_the_reference_or_is_a_finding_there(sound: tuple[str, Damaged]) -> None:
    """Every dtype is tried on one tensor of each kind (a name without its numbers), and one on the last of it."""
    family, damaged = sound
    outcomes: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for file, name in damaged.samples():
        tensor = damaged.shards[file][name]
        kind = re.sub(r"\d+", "*", name)
        others = [d for d in DTYPES if d != tensor.dtype]
        turn = seen[kind]
        seen[kind] += 1
        for dtype in others if turn == 0 else [others[turn % len(others)]]:
            damaged.replace(file, {name: tensor.float().to(dtype)})
            proof = _prove(damaged.path, MTP[family])
            if not proof.proven:
                found = _all(proof, "error")
                assert len(found) == 1, found
                assert name in (found[0].tensor, *found[0].message.replace(",", " ").split()), found
                outcomes[found[0].code] += 1
            else:
                assert [f.tensor for f in proof.findings if f.code in ("dtype-noted", "format-contradiction")] == [
                    name
                ], (name, dtype)
                plan = prove(build_plan(open_checkpoint(damaged.path))).require_proven()
                expected = Reference(damaged.path).params
                if f"layers.{SMALL['num_hidden_layers']}." not in name:
                    assert differences(load_rank(plan, 0).tensors, expected) == [], (name, dtype)
                outcomes["loaded"] += 1
        damaged.restore(file)
    assert outcomes["loaded"]
    assert outcomes["dtype-inadmissible"] or outcomes["format-contradiction"]


def test_every_expert_missing_from_a_layer_is_one_finding_that_counts_them(tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path, num_shards=1)
    damaged = Damaged(tmp_path)
    lost = {n: None for _, n in damaged.names() if ".layers.4.mlp.experts." in n and n.endswith("up_proj.weight")}
    damaged.replace("model.safetensors", dict(lost))
    found = _all(_prove(tmp_path, 0), "error")
    assert [f.code for f in found] == ["tensor-missing"]
    assert "and 7 more like it" in found[0].message
    assert found[0].ranks == (1,)


def test_a_part_left_unquantised_is_followed_and_the_fused_parameter_is_decoded(tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path, num_shards=1)
    damaged = Damaged(tmp_path)
    name = "model.layers.0.self_attn.q_a_proj.weight"
    plain = torch.randn(damaged.shards["model.safetensors"][name].shape).bfloat16()
    damaged.replace("model.safetensors", {name: plain, name + "_scale_inv": None})
    proof = _prove(tmp_path, 0)
    assert proof.proven
    assert [(f.code, f.severity, f.tensor) for f in proof.findings] == [("format-contradiction", "warning", name)]
    one = prove(build_plan(open_checkpoint(tmp_path))).require_proven()
    fused = load_rank(one, 0).tensors["layers.0.self_attn.fused_qkv_a_proj.weight"]
    assert fused.dtype == torch.bfloat16
    assert torch.equal(fused[: len(plain)], plain)


def test_an_expert_between_others_that_is_stored_in_another_format_is_found(tmp_path: Path) -> None:
    write_tiny(PRESETS["kimi-k2-int4"], tmp_path, num_shards=1)
    damaged = Damaged(tmp_path)
    stem = "model.layers.1.mlp.experts.1.up_proj.weight"
    packed = damaged.shards["model.safetensors"][f"{stem}_packed"]
    plain = torch.randn(packed.shape[0], packed.shape[1] * 8).bfloat16()
    suffixes = ("_packed", "_scale", "_shape")
    damaged.replace("model.safetensors", {stem: plain, **dict.fromkeys(f"{stem}{s}" for s in suffixes)})
    proof = _prove(tmp_path, 0)
    assert proof.proven
    assert [(f.code, f.tensor) for f in proof.findings] == [("format-contradiction", stem)]
