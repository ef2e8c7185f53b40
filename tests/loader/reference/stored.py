"""Whole tensors of a checkpoint, and how two sets of them differ."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

Arrays = dict[str, torch.Tensor]


def read_all(path: Path) -> Arrays:
    """Every tensor of a checkpoint, whole."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            tensors.update({name: f.get_tensor(name) for name in f.keys()})  # noqa: SIM118
    return tensors


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def differences(loaded: Arrays, expected: Arrays) -> list[str]:
    """Names whose bytes, shapes or dtypes differ, or that only one side has."""
    out = [f"only loaded: {n}" for n in loaded.keys() - expected.keys()]
    out += [f"only expected: {n}" for n in expected.keys() - loaded.keys()]
    for name in loaded.keys() & expected.keys():
        a, b = loaded[name], expected[name]
        if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(raw(a), raw(b)):
            out.append(f"{name}: {a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    return sorted(out)
