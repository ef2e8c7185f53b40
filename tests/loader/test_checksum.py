from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadError
from loadmaster.loader import load_rank
from loadmaster.loader.checksum import _ROW, Manifest, _weights, checksum, checksums
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS, write_tiny


def slowly(data: bytes) -> int:
    """The definition: words times the weight of their place in a row, rows times the weight of theirs."""
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), dtype=np.uint64)
    total = 0
    for row in range(-(-len(words) // _ROW)):
        part = words[row * _ROW : (row + 1) * _ROW]
        within = int((part * _weights(0, len(part))).sum(dtype=np.uint64))
        total += within * int(_weights(_ROW + row, 1)[0])
    return total % 2**64


@given(st.binary(max_size=100))
def test_small_tensors(data: bytes) -> None:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    assert checksum(tensor) == slowly(data)


@pytest.mark.parametrize("words", [_ROW - 1, _ROW, 9 * _ROW, 9 * _ROW + 5])
def test_large_tensors_and_a_bit_of_them_changed(words: int) -> None:
    data = np.random.default_rng(words).integers(0, 2**63, words, dtype=np.int64)
    tensor = torch.from_numpy(data)
    expected = slowly(data.tobytes())
    assert checksum(tensor) == expected
    for place in (0, words // 2, words - 1):
        tensor[place] ^= 1 << 17
        assert checksum(tensor) != expected
        tensor[place] ^= 1 << 17
    tensor[:2] = tensor[:2].flip(0)
    assert checksum(tensor) != expected


def test_odd_offsets_and_dtypes() -> None:
    base = torch.arange(1000, dtype=torch.uint8)
    assert checksum(base[3:500]) == slowly(base[3:500].numpy().tobytes())
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.int16):
        assert checksum(base[1:801].clone().view(dtype)) == slowly(base[1:801].numpy().tobytes())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_first_load_writes_and_the_next_is_held_against_it(device: str, tmp_path: Path) -> None:
    write_tiny(PRESETS["glm-5.1-fp8"], tmp_path / "m")
    layout = ParallelLayout(pipeline_parallel_size=2)
    plan = prove(build_plan(open_checkpoint(tmp_path / "m"), layout)).require_proven()
    manifest = Manifest(plan, tmp_path / "manifest.json")
    for rank in range(2):
        loaded = load_rank(plan, rank)  # on the host: the checksums are the same everywhere
        assert not manifest.check(rank, checksums(loaded))
    for rank in range(2):
        again = load_rank(plan, rank, device=device)
        assert manifest.check(rank, checksums(again))
    name, tensor = next((n, t) for n, t in again.tensors.items() if "experts.w13_weight" in n and "scale" not in n)
    tensor.view(torch.uint8).view(-1)[1234] ^= 4
    with pytest.raises(LoadError, match=rf"rank 1: checksums differ from .*: {re.escape(name)}"):
        manifest.check(1, checksums(again))


def test_a_manifest_of_another_plan_is_refused(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path / "m")
    one = build_plan(open_checkpoint(tmp_path / "m"))
    two = build_plan(open_checkpoint(tmp_path / "m"), ParallelLayout(pipeline_parallel_size=2))
    path = tmp_path / "manifest.json"
    Manifest(one, path).check(0, {"a": 1})
    with pytest.raises(LoadError, match="not a manifest of this plan"):
        Manifest(two, path).check(0, {"a": 1})
    path.write_text("[]")
    with pytest.raises(LoadError, match="not a manifest of this plan"):
        Manifest(one, path).check(0, {"a": 1})
