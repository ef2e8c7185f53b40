"""`fastsafetensors <https://github.com/foundation-model-stack/fastsafetensors>`_: only what a rank needs.

Its filter skips the bytes of other tensors without GPUDirect Storage (``nogds``); with it, shards are read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loadmaster.plan import Plan, needed

if TYPE_CHECKING:
    import torch


def tensors(plan: Plan, rank: int, device: str = "cpu", *, nogds: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a rank needs, a shard at a time. They share a buffer, which lives as long as one of them.

    Raises:
        ArgumentError: the layout has no such rank.
    """
    from fastsafetensors import SafeTensorsFileLoader

    found = needed(plan, rank)
    for shard in dict.fromkeys(tensor.shard for tensor in found.values()):
        loader = SafeTensorsFileLoader(None, device, nogds=nogds)
        try:
            loader.set_tensor_filter(found.__contains__)
            loader.add_filenames({0: [str(plan.checkpoint.path / shard)]})
            buffer = loader.copy_files_to_device()
            try:
                for name in loader.get_keys():
                    yield name, buffer.get_tensor(name)
            finally:
                buffer.close()
        finally:
            loader.close()
