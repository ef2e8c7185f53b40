"""Qwen3.5 and 3.8: published counts and bytes, the MTP layer under names of its own, and defects of what is new in them."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.findings import Finding
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.synth.inventory import inventory
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import Change, damaged_copy

BODY = "model.language_model.layers."


def vision(out: int) -> list[int]:
    """Elements of each of the 333 tensors of the tower, 27 blocks of 1152, and of the merger into ``out``."""
    wide, inner = 1152, 4304
    block = [*[wide] * 4, 3 * wide * wide, 3 * wide, wide * wide, wide, inner * wide, inner, wide * inner, wide]
    merger = [wide, wide, (4 * wide) ** 2, 4 * wide, out * 4 * wide, out]
    return [wide * 3 * 2 * 16 * 16, wide, 2304 * wide, *block * 27, *merger]


@pytest.mark.parametrize(
    ("preset", "count", "payload", "layers"),
    [
        (
            "qwen3.8",
            1_199,
            55_562_855_904,
            {f"{BODY}0.": 766_546_368, f"{BODY}3.": 744_510_464, "mtp.": 849_398_784},
        ),
        ("qwen3.5-moe", 1_811, int(66.97 * 2**30), {}),
    ],
)
def test_counts_and_bytes_are_the_published_ones(preset: str, count: int, payload: int, layers: dict[str, int]) -> None:
    config = PRESETS[preset].config_of(tiny=False)
    entries = [e for e in inventory(PRESETS[preset], config) if not e.name.startswith("model.visual.")]
    tower = vision(config["text_config"]["hidden_size"])
    assert len(entries) + len(tower) == count
    total = sum(e.signature.num_bytes for e in entries) + 2 * sum(tower)
    assert total == pytest.approx(payload, abs=0 if layers else 0.005 * 2**30)
    for prefix, num_bytes in layers.items():
        assert sum(e.signature.num_bytes for e in entries if e.name.startswith(prefix)) == num_bytes


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen") / "model"
    write_tiny(PRESETS["qwen3.5-moe"], path)
    return path


def found(path: Path, drafts: int = 1) -> list[Finding]:
    return list(prove(build_plan(open_checkpoint(path), ParallelLayout(2, num_draft_layers=drafts))).findings)


def test_the_mtp_layer_is_read_or_waived_and_takes_the_models_embedding(sound: Path) -> None:
    assert found(sound) == []
    plan = build_plan(open_checkpoint(sound), ParallelLayout(2))
    assert [w.num_tensors for w in plan.waivers if w.reason == "mtp not enabled"] == [
        len(DamagedCheckpoint(sound).names(r"^mtp\."))
    ]


def test_the_mtp_layers_experts_may_be_stacked_too(sound: Path, tmp_path: Path) -> None:
    path = Path(copytree(sound, tmp_path / "copy"))
    damaged = DamagedCheckpoint(path)
    experts = "mtp.layers.0.mlp.experts."
    parts = {n: damaged.tensor(n) for n in damaged.names(rf"^{experts}")}
    gate, up, down = ([parts[f"{experts}{e}.{kind}_proj.weight"] for e in range(8)] for kind in ("gate", "up", "down"))
    stacks = {
        experts + "gate_up_proj": torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)]),
        experts + "down_proj": torch.stack(down),
    }
    damaged.drop(rf"^{experts}")
    damaged.each(r"^mtp\.norm\.weight$", lambda name, tensor: {name: tensor, **stacks})
    assert found(path) == []


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (r"^mtp\.fc\.weight$", None, "tensor-missing", "mtp.fc.weight"),
        (r"^mtp\.", None, "layer-missing", "mtp.layers.0.*"),
        (rf"^{BODY}0\.linear_attn\.A_log$", None, "tensor-missing", f"{BODY}0.linear_attn.A_log"),
        (
            rf"^{BODY}1\.linear_attn\.in_proj_qkv\.weight$",
            lambda t: t[:-16],
            "shape-mismatch",
            f"{BODY}1.linear_attn.in_proj_qkv.weight",
        ),
        (
            rf"^{BODY}1\.linear_attn\.dt_bias$",
            lambda t: t[:4],
            "shape-mismatch",
            f"{BODY}1.linear_attn.dt_bias",
        ),
    ],
)
def test_each_defect_is_found_at_its_tensor(
    pattern: str, change: Change | None, code: str, tensor: str, sound: Path, tmp_path: Path
) -> None:
    path = damaged_copy(sound, tmp_path / "copy", pattern, change)
    assert [(f.code, f.tensor, f.severity) for f in found(path)] == [(code, tensor, "error")]


def test_a_lost_mtp_layer_is_a_warning_where_it_is_not_enabled(sound: Path, tmp_path: Path) -> None:
    path = Path(copytree(sound, tmp_path / "copy"))
    DamagedCheckpoint(path).drop(r"^mtp\.")
    assert [(f.code, f.severity) for f in found(path, drafts=0)] == [("layer-missing", "warning")]


def test_several_mtp_layers_are_refused(sound: Path, tmp_path: Path) -> None:
    path = Path(copytree(sound, tmp_path / "copy"))
    text = PRESETS["qwen3.5-moe"].config_of(tiny=True)["text_config"]
    DamagedCheckpoint(path).config(text_config={**text, "mtp_num_hidden_layers": 2})
    with pytest.raises(UnsupportedError, match="mtp_num_hidden_layers other than 0 and 1"):
        build_plan(open_checkpoint(path))
