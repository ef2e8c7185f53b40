"""`fastsafetensors <https://github.com/foundation-model-stack/fastsafetensors>`_: only what a rank needs.

Its filter skips the bytes of other tensors without GPUDirect Storage (``nogds``); with it, shards are read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadmaster.integrations.filter import needed_by_shard
from loadmaster.plan import Plan

if TYPE_CHECKING:
    import torch


def tensors(plan: Plan, rank: int, device: str = "cpu", *, nogds: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a rank needs, a shard at a time. They share a buffer, which lives as long as one of them.

    Raises:
        ArgumentError: the layout has no such rank.
    """
    from fastsafetensors import SafeTensorsFileLoader

    for shard, of_shard in needed_by_shard(plan, rank).items():
        wanted = {tensor.name for tensor in of_shard}
        loader = SafeTensorsFileLoader(None, device, nogds=nogds)
        try:
            loader.set_tensor_filter(wanted.__contains__)
            loader.add_filenames({0: [str(plan.checkpoint.path / shard)]})
            buffer = loader.copy_files_to_device()
            try:
                for name in loader.get_keys():
                    yield name, buffer.get_tensor(name)
            finally:
                buffer.close()
        finally:
            loader.close()
