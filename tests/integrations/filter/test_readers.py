"""Other loaders behind the filter: the tensors that a rank needs, as safetensors reads them, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import safetensors
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, needed
from tests.conftest import Tiny

LAYOUTS = {
    "glm-5.1-fp8": ParallelLayout(2, 2, enable_expert_parallel=True, num_draft_layers=1),
    "qwen3-moe": ParallelLayout(1, 4, enable_expert_parallel=True, num_redundant_experts=4),
}
PACKAGES = {"fastsafetensors": "fastsafetensors", "runai": "runai_model_streamer"}


def check(tensors: Callable[..., Iterator[tuple[str, Any]]], preset: str, tiny: Tiny, device: str) -> None:
    """Read what each rank needs, and compare with safetensors."""
    path = tiny(preset)
    plan = build_plan(open_checkpoint(path), LAYOUTS[preset])
    stored = {}
    for file in sorted(path.glob("*.safetensors")):
        with safetensors.safe_open(file, "pt") as opened:
            stored |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    for rank in range(plan.num_ranks):
        read = dict(tensors(plan, rank, device))
        assert read.keys() == needed(plan, rank).keys()
        assert len(read) < len(stored)
        for name, tensor in read.items():
            assert (tensor.dtype, tensor.shape) == (stored[name].dtype, stored[name].shape)
            assert torch.equal(tensor.cpu().reshape(-1).view(torch.uint8), stored[name].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("preset", LAYOUTS)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_loader_reads_what_each_rank_needs(name: str, preset: str, tiny: Tiny) -> None:
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    check(import_module(f"loadmaster.integrations.filter.{name}").tensors, preset, tiny, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.skipif(not hasattr(safetensors.safe_open, "prefetch"), reason="safetensors before 0.9")
@pytest.mark.parametrize("preset", LAYOUTS)
def test_prefetch_reads_what_each_rank_needs(preset: str, tiny: Tiny) -> None:
    from loadmaster.integrations.filter.prefetch import tensors

    check(tensors, preset, tiny, "cuda:0")
