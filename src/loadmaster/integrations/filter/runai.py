"""The `Run:ai Model Streamer <https://github.com/run-ai/runai-model-streamer>`_: only what a rank needs, as ranges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadmaster.integrations.filter import needed_by_shard
from loadmaster.plan import Plan

if TYPE_CHECKING:
    import torch


def tensors(plan: Plan, rank: int, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a rank needs, as they arrive, each in separate memory.

    Raises:
        ArgumentError: the layout has no such rank.
    """
    from runai_model_streamer.file_streamer import FileChunks, FileStreamer

    from loadmaster.torch_dtypes import TORCH

    of_shards = needed_by_shard(plan, rank)
    order = list(of_shards.values())
    with FileStreamer() as streamer:
        streamer.stream_files(
            [
                FileChunks(i, str(plan.checkpoint.path / shard), [t.start for t in of], [t.num_bytes for t in of])
                for i, (shard, of) in enumerate(of_shards.items())
            ],
            device=device,
        )
        for shard_number, number, data in streamer.get_chunks():
            tensor = order[shard_number][number]
            # a copy: the streamer's buffers are used again, and may not be aligned for the dtype
            yield tensor.name, data.flatten().clone().view(TORCH[tensor.dtype]).view(tensor.shape)
