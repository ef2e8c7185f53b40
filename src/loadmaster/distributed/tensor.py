"""Tensor parallelism: sums over the ranks of one stage, and the columns of all ranks side by side.

Every rank gets the same bits, so what the ranks compute from a result (norms, the choice of experts, samples) is the same
everywhere and is never sent. `HostGroup` works on tensors in host memory, through the sockets of a `Mesh`;
`loadmaster.distributed.nccl` on GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loadmaster.distributed.mesh import Mesh

DIVIDE_FROM_BYTES = 1 << 18
"""From this size on each rank adds up a part of the sum: a second round trip, but less work and less traffic."""


class TensorGroup(Protocol):
    """The ranks of one stage, of which this process is number ``slot``. All call the same methods in the same order."""

    @property
    def slot(self) -> int:
        """This rank's number in the stage."""

    @property
    def size(self) -> int:
        """How many ranks the stage has, at least 2."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors, which have one shape. ``x`` may be overwritten."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Return all ranks' tensors, which have one shape, one after another along the last dim."""


class HostGroup:
    """A group over sockets. Tensors on a GPU are copied to the host and back: only where ranks share a GPU."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.slot, self.size = mesh.slot, mesh.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum, added up in the order of the ranks; in float32 where ``x`` is narrower, and rounded once.

        Raises:
            PeerLostError: another rank ended.
        """
        own_N = x.detach().cpu().contiguous().view(-1)
        if own_N.nbytes < DIVIDE_FROM_BYTES:
            total_N = _sum(self._exchanged([own_N] * self.size, own_N))
        else:
            parts = own_N.tensor_split(self.size)
            part = _sum(self._exchanged(parts, parts[self.slot]))
            total_N = torch.empty_like(own_N)
            for target, source in zip(
                total_N.tensor_split(self.size), self._exchanged([part] * self.size, part, like=parts), strict=True
            ):
                target.copy_(source)
        return total_N.view(x.shape).to(x.device)

    def all_gather(self, x: Tensor) -> Tensor:
        """Return all ranks' tensors along the last dim.

        Raises:
            PeerLostError: another rank ended.
        """
        own = x.detach().cpu().contiguous()
        return torch.cat(self._exchanged([own] * self.size, own), dim=-1).to(x.device)

    def _exchanged(self, outgoing: Sequence[Tensor], own: Tensor, like: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Send to each rank its tensor, and return what all ranks have sent here, this one's ``own`` included.

        ``like``: tensors of the shapes that are received; without it all are as ``own``.
        """
        received = [torch.empty_like(own if like is None else like[slot]) for slot in range(self.size)]
        received[self.slot] = own
        others = self._mesh.others
        self._mesh.exchange({i: _bytes(outgoing[i]) for i in others}, {i: _bytes(received[i]) for i in others})
        return received


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum in order; narrow floats are added in float32."""
    if len(parts) == 2:
        return parts[0] + parts[1]
    dtype = parts[0].dtype
    total = parts[0].to(torch.promote_types(dtype, torch.float32), copy=True)
    for part in parts[1:]:
        total += part
    return total.to(dtype)


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
