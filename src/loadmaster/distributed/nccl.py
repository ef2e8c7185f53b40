"""Tensor parallelism between GPUs of one host, through NCCL. Sums stay on the devices, and the host waits for none.

The ranks meet in a file of a private folder, which the engine's process creates and removes: torch's rendezvous opens no
port. NCCL itself listens on the loopback interface alone, and accepts only who sends the random number that the ranks
exchange through that file: docs/decisions/0005-sums-over-ranks.md.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, distributed


class NcclGroup:
    """The ranks of one stage, each on its own GPU.

    ``meeting`` is a path in a private folder, the same for all ranks, of a file that does not exist yet.
    """

    def __init__(self, slot: int, size: int, meeting: str, device: torch.device) -> None:
        os.environ["NCCL_SOCKET_IFNAME"] = "lo"  # NCCL has no other way to set it
        self.slot, self.size = slot, size
        torch.cuda.set_device(device)
        store = distributed.FileStore(meeting, size)  # type: ignore[attr-defined]
        distributed.init_process_group("nccl", store=store, rank=slot, world_size=size, device_id=device)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return ``x``, overwritten by the sum."""
        x = x.contiguous()
        distributed.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Return all ranks' tensors along the last dim."""
        parts = x.new_empty((self.size, *x.shape))
        distributed.all_gather_into_tensor(parts, x.contiguous())
        return torch.cat(parts.unbind(), dim=-1)
