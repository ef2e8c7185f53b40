"""The pipeline's process group: stages in a row on one host, over gloo on the loopback interface.

Stage ``i`` hands its outputs to stage ``i + 1`` and nothing else is exchanged, save the agreement on the plan at the
beginning. Not for tokens or control: those go by the pipes between the workers and the process that started them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from loadmaster.errors import LoadError

FOREVER = timedelta(days=7)
"""Whether a peer still lives is watched by the process that started it; a stage may wait for its inputs."""

MAX_TENSORS = 4
MAX_DIMS = 4
DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""What can cross a cut; a header names a dtype by its place here, so the order is part of the protocol."""


class PeerLostError(Exception):
    """A peer went away in the middle of an exchange: a consequence, its cause is the peer's own end."""


def loopback_store(world_size: int) -> tuple[TCPStore, int]:
    """Open the rendezvous on a free port of the loopback interface, and return it with the port.

    The socket is bound here and handed over, so no other process can take the port in between, and nothing listens on
    other interfaces.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(max(world_size, 16))
    port = int(listener.getsockname()[1])
    store = TCPStore(
        "127.0.0.1",
        port,
        world_size,
        is_master=True,
        timeout=FOREVER,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def join_store(port: int, world_size: int) -> TCPStore:
    """Return the rendezvous that the first stage has opened."""
    return TCPStore("127.0.0.1", port, world_size, is_master=False, timeout=FOREVER)


class PipelineGroup:
    """This stage's place in the row. A row of one needs no ``store`` and exchanges nothing."""

    def __init__(self, rank: int, world_size: int, store: Store | None = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self._sending: list[tuple[dist.Work | None, torch.Tensor]] = []
        if world_size > 1:
            assert store is not None
            try:
                dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=FOREVER)
            except RuntimeError as error:
                raise PeerLostError(f"no connection to the other stages: {error}") from error

    def agree(self, plan_hash: str) -> None:
        """Hold the hash of this rank's plan against those of all others.

        Raises:
            LoadError: the ranks would carry out different plans; says which.
        """
        if self.world_size == 1:
            return
        hashes: list[str | None] = [None] * self.world_size
        try:
            dist.all_gather_object(hashes, plan_hash)
        except RuntimeError as error:
            raise PeerLostError(str(error)) from error
        if len(set(hashes)) > 1:
            ranks_by_hash: dict[str, list[str]] = {}
            for rank, found in enumerate(hashes):
                ranks_by_hash.setdefault(str(found)[:16], []).append(str(rank))
            found = ", ".join(f"{h} on rank {' '.join(ranks)}" for h, ranks in ranks_by_hash.items())
            raise LoadError(
                f"the ranks do not agree on the plan: {found}",
                hint="all ranks must see the same files and run the same version; nothing was read",
            )

    def send_next(self, tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> None:
        """Hand ``names`` of ``tensors`` to the next stage, without waiting until it has taken them.

        At most one hand-over is under way: the next waits for the last.
        """
        peer = self.rank + 1
        parts = [tensors[name].detach().cpu().contiguous() for name in names]
        try:
            self._finish_sending()
            for part in [_header(parts), *parts]:
                self._sending.append((dist.isend(part, peer), part))
        except RuntimeError as error:
            raise PeerLostError(f"stage {peer} of {self.world_size} was lost: {error}") from error

    def receive_previous(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return what the stage before hands over, by name."""
        peer = self.rank - 1
        header = torch.empty(MAX_TENSORS * (2 + MAX_DIMS), dtype=torch.int64)
        tensors = {}
        try:
            dist.recv(header, peer)
            for name, row in zip(names, header.view(MAX_TENSORS, -1).tolist(), strict=False):
                dtype, num_dims, *dims = row
                tensors[name] = torch.empty(dims[:num_dims], dtype=DTYPES[dtype])
                dist.recv(tensors[name], peer)
        except RuntimeError as error:
            raise PeerLostError(f"stage {peer} of {self.world_size} was lost: {error}") from error
        return tensors

    def _finish_sending(self) -> None:
        for work, _ in self._sending:
            if work is not None:
                work.wait()
        self._sending.clear()


def _header(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return dtype, number of dims and dims of each tensor, in rows of fixed size."""
    assert len(parts) <= MAX_TENSORS
    header = torch.zeros(MAX_TENSORS, 2 + MAX_DIMS, dtype=torch.int64)
    for row, part in zip(header, parts, strict=False):
        assert part.dim() <= MAX_DIMS
        row[: 2 + part.dim()] = torch.tensor([DTYPES.index(part.dtype), part.dim(), *part.shape])
    return header.view(-1)
