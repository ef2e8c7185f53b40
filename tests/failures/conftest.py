"""Checkpoints small enough to be written once and mutated often."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from loadmaster.synth import PRESETS, write_tiny
from tests.failures.damaged import DamagedCheckpoint

DEEPSEEK = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
SMALL = {
    "glm-5.1-fp8": DEEPSEEK,
    "glm-5.2-fp8": {"n_routed_experts": 2, "num_experts_per_tok": 1},
    "deepseek-v3": {**DEEPSEEK, "n_group": 1, "topk_group": 1},
    "qwen3": {"num_hidden_layers": 4},
    "llama": {"num_hidden_layers": 4},
    "gpt-oss": {},
    "smollm2": {"num_hidden_layers": 4},
}
Sound = Callable[..., DamagedCheckpoint]
"""A preset's name, and the number of shards → a sound checkpoint that a test may change."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    paths: dict[tuple[str, int], Path] = {}

    def path(preset: str, shards: int) -> Path:
        if (preset, shards) not in paths:
            out = tmp_path_factory.mktemp(preset)
            write_tiny(PRESETS[preset], out, overrides=SMALL[preset], num_shards=shards)
            paths[preset, shards] = out
        return paths[preset, shards]

    return path


@pytest.fixture
def sound(made: Callable[[str, int], Path], tmp_path: Path) -> Sound:
    copies = count()

    def copy(preset: str, shards: int = 1) -> DamagedCheckpoint:
        return DamagedCheckpoint(Path(shutil.copytree(made(preset, shards), tmp_path / f"{preset}-{next(copies)}")))

    return copy
