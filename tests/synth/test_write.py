"""The tiny and the full-size checkpoints of the presets: their bytes, their tensors, their files."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import errors
from loadmaster.synth import PRESETS, write_full_size, write_tiny
from loadmaster.synth.write import quantise_blocks

FAMILIES = ("qwen3", "glm-5.1-fp8", "kimi-k2-int4", "gpt-oss")


def contents(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir())}


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    table = open_checkpoint(path).table
    return {name: table.signatures[table.signature[number]].shape for name, number in table.ids.items()}


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_seed_gives_the_same_bytes_and_another_seed_other_weights_only(preset: str, tmp_path: Path) -> None:
    for folder, seed in (("first", 7), ("again", 7), ("other", 8)):
        write_tiny(PRESETS[preset], tmp_path / folder, seed=seed)
    first, again, other = (contents(tmp_path / folder) for folder in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    different = {name for name in first if first[name] != other[name]}
    assert different == {name for name in first if name.endswith(".safetensors")}
    assert {n: len(data) for n, data in first.items()} == {n: len(data) for n, data in other.items()}


@pytest.mark.parametrize("preset", FAMILIES)
def test_what_is_written_is_what_it_reports(preset: str, tmp_path: Path) -> None:
    written = write_tiny(PRESETS[preset], tmp_path, num_shards=3)
    checkpoint = open_checkpoint(tmp_path)
    assert not errors(checkpoint.findings)
    assert written == {
        "num_tensors": len(checkpoint.table),
        "num_files": len(checkpoint.files),
        "payload_bytes": checkpoint.table.payload_bytes,
    }
    assert written["num_files"] == 3


def test_overrides_change_the_config_and_the_tensors(tmp_path: Path) -> None:
    write_tiny(PRESETS["qwen3"], tmp_path, overrides={"num_hidden_layers": 2, "hidden_size": 64})
    shapes = shapes_of(tmp_path)
    assert shapes["model.layers.1.input_layernorm.weight"] == (64,)
    assert "model.layers.2.input_layernorm.weight" not in shapes


def test_a_full_size_model_takes_no_space_on_the_disk(tmp_path: Path) -> None:
    written = write_full_size(PRESETS["qwen3"], tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) > written["payload_bytes"] > 16 * 10**9
    assert sum(f.stat().st_blocks * 512 for f in files) < 2**24
    assert shapes_of(tmp_path)["model.embed_tokens.weight"] == (151936, 4096)


@pytest.mark.parametrize("powers", [False, True])
def test_each_block_is_divided_by_its_own_factor_and_incomplete_ones_too(powers: bool) -> None:
    values = np.array([[448, -224, 1], [112, 56, 0.5]], np.float32)
    codes, scale = quantise_blocks(values, (2, 2), powers=powers)
    assert codes.dtype == ml_dtypes.float8_e4m3fn
    assert scale.tolist() == [[1.0, 2.0**-8 if powers else pytest.approx(1 / 448)]]
    restored = codes.astype(np.float32) * np.repeat(scale, 2, axis=1)[:, :3]
    np.testing.assert_allclose(restored, values, rtol=2**-4)
