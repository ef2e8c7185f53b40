"""Redundant experts: under EPLB vLLM holds copies of experts in more slots; all ways to load fill them as its own loader does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.audit.case import ACCEPTED
from loadmaster.audit.pretended import is_pretended
from loadmaster.audit.ranks import Built, Rank, load
from loadmaster.synth import PRESETS, write_tiny

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_pretended(), reason="needs the layouts of CUDA without a GPU: make test-vllm-cuda"),
]

REDUNDANT = 2


@pytest.fixture
def eplb(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every config has redundant experts; vLLM's own check wants as many processes as ranks."""
    from vllm.engine.arg_utils import EngineArgs

    create: Any = EngineArgs.create_engine_config

    def with_copies(self: Any, *args: Any, **more: Any) -> Any:
        config = create(self, *args, **more)
        config.parallel_config.enable_eplb = True
        config.parallel_config.eplb_config.num_redundant_experts = REDUNDANT
        return config

    monkeypatch.setattr(EngineArgs, "create_engine_config", with_copies)


def raw(built: Built, name: str) -> torch.Tensor:
    return built.params[name].detach().contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("preset", ["qwen3-moe", "deepseek-v3", "glm-5.1-fp8"])
@pytest.mark.parametrize("slot", [0, 1])
def test_copies_of_experts_are_equal(preset: str, slot: int, eplb: None, tmp_path: Path) -> None:
    write_tiny(PRESETS[preset], tmp_path / preset, overrides=ACCEPTED.get(preset, {}))
    rank = Rank(tp=(slot, 2), ep=True)
    own = load(tmp_path / preset, rank, load_format="auto")
    ours = {
        direct: load(tmp_path / preset, rank, load_format="loadmaster", model_loader_extra_config={"direct": direct})
        for direct in (True, False)
    }
    experts = next(name for name in own.params if name.endswith("w13_weight"))
    assert len(own.params[experts]) == (8 + REDUNDANT) // 2  # slots of this rank, copies included
    assert ours[False].loader.offered  # streamed through vLLM's own loader
    for built in ours.values():
        assert [name for name in own.params if not torch.equal(raw(own, name), raw(built, name))] == []
