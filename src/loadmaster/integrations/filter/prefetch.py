"""The prefetch of `safetensors <https://github.com/huggingface/safetensors>`_ 0.9, onto a GPU: only what a rank needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadmaster.integrations.filter import needed_by_shard
from loadmaster.plan import Plan

if TYPE_CHECKING:
    import torch


def tensors(plan: Plan, rank: int, device: str, *, threads: int = 8) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a rank needs, a shard at a time, as their bytes arrive. ``device`` is a CUDA device.

    Raises:
        ArgumentError: the layout has no such rank.
    """
    from safetensors import safe_open

    for shard, of_shard in needed_by_shard(plan, rank).items():
        wanted = dict.fromkeys(tensor.name for tensor in of_shard)
        with (
            safe_open(plan.checkpoint.path / shard, "pt", device=device) as file,
            file.prefetch(wanted, threads=threads) as arriving,
        ):
            yield from arriving
