"""MiMo-V2: published counts and bytes, chunks whose blocks begin anew at every cut, and what is damaged in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loadmaster.architectures.mimo_v2 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError, UnsupportedError
from loadmaster.findings import Finding
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.synth.inventory import Entry, inventory
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.architectures.damage import damaged_copy

LAYER = "model.layers."


def entries_of(preset: str, **changes: Any) -> list[Entry]:
    return inventory(PRESETS[preset], PRESETS[preset].config_of(tiny=False) | changes)


def num_bytes(entries: list[Entry], prefix: str, *, routed: bool = False) -> int:
    return sum(
        e.signature.num_bytes for e in entries if e.name.startswith(prefix) and (".experts." in e.name) == routed
    )


def test_the_pro_of_v2_5_has_the_published_tensors_and_size() -> None:
    entries = entries_of("mimo-v2.5-pro")
    assert len(entries) == 159_581
    assert sum(e.signature.num_bytes for e in entries) / 2**30 == pytest.approx(962.40, abs=0.005)
    shapes = {e.name: e.signature.shape for e in entries if e.name.startswith(f"{LAYER}1.self_attn.qkv_proj")}
    assert list(shapes.values()) == [(27136, 6144), (216, 48)]  # 8 chunks of 27 rows, not ceil(27136 / 128) = 212


def test_the_pro_of_v2_6_has_the_published_bytes_of_each_kind_of_layer() -> None:
    entries = entries_of("mimo-v2.6-pro")
    others, their_bytes = 459, 2_067_523_584  # vision, audio and speech
    assert len(entries) + others == 160_040
    assert sum(e.signature.num_bytes for e in entries) + their_bytes == 566_027_990_784
    first, sliding, whole = (num_bytes(entries, f"{LAYER}{layer}.") for layer in (0, 1, 7))
    assert (first, sliding, whole) == (670_179_840, 372_836_608, 372_836_352)
    assert num_bytes(entries, "model.mtp.") == 2_463_635_712
    assert num_bytes(entries, f"{LAYER}1.", routed=True) == 7_700_742_144


def test_the_flash_of_v2_6_has_the_published_number_of_tensors() -> None:
    layers = [int(i not in (0, *range(5, 48, 6))) for i in range(48)]
    entries = entries_of(
        "mimo-v2.6-pro",
        hidden_size=4096,
        num_hidden_layers=48,
        num_attention_heads=64,
        swa_num_attention_heads=64,
        num_key_value_heads=4,
        n_routed_experts=256,
        hybrid_layer_pattern=layers,
        moe_layer_freq=[0, *[1] * 47],
    )
    assert len(entries) + 459 == 73_081
    shapes = {e.name: e.signature.shape for e in entries if e.name.endswith("qkv_proj.weight_scale_inv")}
    # Of 4 chunks: 3072 + 192 + 128 rows are 26.5 blocks, and with two heads of keys 3072 + 384 + 256 are 29.
    assert [shapes[f"{LAYER}{n}.self_attn.qkv_proj.weight_scale_inv"] for n in (0, 1)] == [(108, 32), (116, 32)]


TINY = PRESETS["mimo-v2.6-pro"].config_of(tiny=True)
FLASH = TINY | {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "model_type": "mimo_v2_flash",
    "attention_projection_layout": None,
    "quantization_config": None,
    "num_nextn_predict_layers": 1,
}
CHUNK = 4 * 96 + 96 + 64
"""Rows of a chunk of the tiny model's global layers: four heads of queries, one of keys, one of values; 4.25 blocks."""


def test_the_tables_agree() -> None:
    for config in (TINY, PRESETS["mimo-v2.5-pro"].config_of(tiny=False), FLASH):
        check_tables(FAMILY, config)


def test_names_and_shapes_of_v2_flash_are_those_of_transformers() -> None:
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]}
    lists = {"num_hidden_layers": 2, "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1]}
    compare_with_transformers(FAMILY, FLASH | lists | kinds)


@pytest.mark.parametrize("config", [TINY, FLASH], ids=["V2.6", "V2-Flash"])
def test_every_rank_gets_its_bytes(config: dict[str, Any], tmp_path: Path) -> None:
    layouts = [
        ParallelLayout(2, 2, num_draft_layers=config["num_nextn_predict_layers"]),
        ParallelLayout(1, 8),  # a head of queries each, four of them share a chunk
        ParallelLayout(1, 2, enable_expert_parallel=True),
    ]
    assert check_loading(FAMILY, config, tmp_path, layouts=layouts) > 500


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("mimo") / "model"
    write_checkpoint(FAMILY, TINY, path)
    return path


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_each_row_of_each_rank_has_the_scale_of_its_chunk(tp: int, sound: Path) -> None:
    """The values by the grids of a rank's parameter are those of the stored chunks, each dequantised for itself."""
    stored = DamagedCheckpoint(sound)
    name = f"{LAYER}0.self_attn.qkv_proj.weight"
    scale = stored.tensor(name + "_scale_inv").reshape(2, 5, -1).numpy()  # 2 chunks of 5 rows of blocks
    chunks = stored.tensor(name).reshape(2, CHUNK, -1).float().numpy()
    whole = [chunks[c] * scale[c][np.arange(CHUNK) // 128] for c in range(2)]  # 96 columns are one block
    heads = {
        "q": [chunk[h * 96 : (h + 1) * 96] for chunk in whole for h in range(4)],
        "k": [chunk[384:480] for chunk in whole],
        "v": [chunk[480:544] for chunk in whole],
    }
    plan = prove(build_plan(open_checkpoint(sound), ParallelLayout(1, tp))).require_proven()
    for rank in range(tp):
        loaded = load_rank(plan, rank)
        spec = next(s for s in loaded.specs if s.name == "layers.0.self_attn.qkv_proj.weight")
        values, factors = (loaded.tensors[n].float().numpy() for n in (spec.name, str(spec.scale)))
        found = np.concatenate(
            [
                values[g.rows[0] : g.rows[1]]
                * factors[g.scale_rows[0] + (np.arange(g.rows[1] - g.rows[0]) + g.phase[0]) // g.block[0]]
                for g in spec.grids
            ]
        )
        held = [heads[part][slice(*_share(len(heads[part]), tp, rank))] for part in ("q", "k", "v")]
        assert np.array_equal(found, np.concatenate([head for part in held for head in part]))


def _share(count: int, tp: int, rank: int) -> tuple[int, int]:
    """The heads of a rank; where there are fewer heads than ranks, several ranks have the same one."""
    return rank * count // tp, max((rank + 1) * count // tp, rank * count // tp + 1)


def test_cuts_that_split_a_head_are_refused(sound: Path) -> None:
    with pytest.raises(LayoutError, match="3"):
        build_plan(open_checkpoint(sound), ParallelLayout(1, 3))


@pytest.mark.parametrize(
    ("pattern", "change", "code", "tensor"),
    [
        (
            r"^model\.layers\.0\.self_attn\.qkv_proj\.weight_scale_inv",
            lambda t: t[:-1],  # 1088 rows are 8.5 blocks: a grid over all chunks has 9 rows, not 2 × 5
            "shape-mismatch",
            f"{LAYER}0.self_attn.qkv_proj.weight_scale_inv",
        ),
        (
            r"^model\.layers\.1\.self_attn\.qkv_proj\.weight$",
            lambda t: t[:-64],
            "shape-mismatch",
            f"{LAYER}1.self_attn.qkv_proj.weight",
        ),
        (
            r"^model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight_scale",
            lambda t: t.float(),
            "dtype-inadmissible",
            f"{LAYER}1.mlp.experts.2.up_proj.weight_scale",
        ),
        (
            r"^model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight$",
            lambda t: t[:, :-1],
            "shape-mismatch",
            f"{LAYER}1.mlp.experts.2.up_proj.weight",
        ),
        (
            r"^model\.layers\.2\.self_attn\.attention_sink_bias",
            None,
            "tensor-missing",
            f"{LAYER}2.self_attn.attention_sink_bias",
        ),
        (r"^model\.mtp\.layers\.2\.eh_proj", None, "tensor-missing", "model.mtp.layers.2.eh_proj.weight"),
    ],
)
def test_a_defect_is_one_finding(
    pattern: str,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    code: str,
    tensor: str,
    sound: Path,
    tmp_path: Path,
) -> None:
    path = damaged_copy(sound, tmp_path / "damaged", pattern, change)
    found: tuple[Finding, ...] = prove(build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=3))).findings
    assert [(f.code, f.tensor) for f in found] == [(code, tensor)]


def test_what_is_not_described_is_refused_by_name() -> None:
    quantization = TINY["quantization_config"]
    for changes, error, says in (
        ({"n_shared_experts": 1}, UnsupportedError, "n_shared_experts"),
        ({"hybrid_layer_pattern": [0, 1]}, ConfigError, "hybrid_layer_pattern must give 0 or 1 for each of"),
        ({"moe_layer_freq": None}, ConfigError, "mlp_layer_types must give dense or sparse for each of 4 layers"),
        ({"swa_num_key_value_heads": 3}, ConfigError, "cannot be stored in 2 chunks"),
    ):
        with pytest.raises(error, match=says):
            FAMILY.schema(FAMILY.describe(TINY | changes))
    with pytest.raises(UnsupportedError, match="store_dtype 'mxfp4' in blocks of 16"):
        config = TINY | {"quantization_config": {**quantization, "mxfp4_block_size": 16}}
        inventory(PRESETS["mimo-v2.6-pro"], config)
