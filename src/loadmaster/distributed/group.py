"""The pipeline's stages in a row on one host, each connected to the next by a socket that the engine's process made.

The sockets are unnamed pairs (``socket.socketpair``), inherited by the two workers that use them. Nothing listens and
nothing has a name, so no other process can join or be mistaken for a stage: docs/decisions/0004-who-can-join.md. Only
bytes of known sizes cross: hashes, headers, elements of tensors. Nothing that is received is unpickled.

Stage ``i`` hands its outputs to stage ``i + 1`` and nothing else is exchanged, save the agreement on the plan at the
beginning. Not for tokens or control: those go by the pipes between the workers and the process that started them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from loadmaster.errors import LoadError

HASH_BYTES = 32
"""A plan's hash is a SHA-256."""

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


class PipelineGroup:
    """This stage's place in the row.

    ``previous`` and ``following`` are the sockets to the neighbours; the first stage has no previous one, the last no
    following one, and a row of one has neither. Whether a peer still lives is watched by the process that started it:
    a stage waits for its inputs without a limit.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        previous: socket.socket | None = None,
        following: socket.socket | None = None,
    ) -> None:
        assert (previous is None) == (rank == 0)
        assert (following is None) == (rank == world_size - 1)
        self.rank = rank
        self.world_size = world_size
        self._previous = previous
        self._following = following
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="hand-over")
        self._sending: Future[None] | None = None

    def agree(self, plan_hash: str) -> None:
        """Hold the hash of this rank's plan, a SHA-256 in hexadecimal, against those of all others.

        The hashes are collected from the first stage to the last, and all of them return on the same way.

        Raises:
            LoadError: the ranks would carry out different plans; says which.
            PeerLostError: another stage ended.
        """
        own = bytes.fromhex(plan_hash)
        assert len(own) == HASH_BYTES, plan_hash
        hashes = own
        try:
            if self._previous is not None:
                hashes = bytes(_receive(self._previous, self.rank * HASH_BYTES)) + own
            if self._following is not None:
                self._following.sendall(hashes)
                hashes = bytes(_receive(self._following, self.world_size * HASH_BYTES))
            if self._previous is not None:
                self._previous.sendall(hashes)
        except OSError as error:
            raise PeerLostError(f"another stage was lost before all agreed on the plan: {error}") from error
        ranks_by_hash: dict[str, list[str]] = {}
        for rank in range(self.world_size):
            found = hashes[rank * HASH_BYTES : (rank + 1) * HASH_BYTES].hex()
            ranks_by_hash.setdefault(found[:16], []).append(str(rank))
        if hashes != own * self.world_size:
            shown = ", ".join(f"{h} on rank {' '.join(ranks)}" for h, ranks in ranks_by_hash.items())
            raise LoadError(
                f"the ranks do not agree on the plan: {shown}",
                hint="all ranks must see the same files and run the same version; nothing was read",
            )

    def send_next(self, tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> None:
        """Hand ``names`` of ``tensors`` to the next stage, without waiting until it has taken them.

        At most one hand-over is under way: the next waits for the last.

        Raises:
            PeerLostError: the next stage ended; it may be the following hand-over that says so.
        """
        assert self._following is not None, "the last stage has no next one"
        parts = [tensors[name].detach().cpu().contiguous() for name in names]
        try:
            if self._sending is not None:
                self._sending.result()
        except OSError as error:
            raise PeerLostError(f"stage {self.rank + 1} of {self.world_size} was lost: {error}") from error
        views = [_bytes_of(part) for part in (_header(parts), *parts)]
        self._sending = self._sender.submit(_send, self._following, views)

    def receive_previous(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return what the stage before hands over, by name.

        Raises:
            PeerLostError: the stage before ended.
        """
        assert self._previous is not None, "the first stage has no previous one"
        header = torch.empty(MAX_TENSORS * (2 + MAX_DIMS), dtype=torch.int64)
        tensors = {}
        try:
            _receive_into(self._previous, _bytes_of(header))
            for name, row in zip(names, header.view(MAX_TENSORS, -1).tolist(), strict=False):
                dtype, num_dims, *dims = row
                tensors[name] = torch.empty(dims[:num_dims], dtype=DTYPES[dtype])
                _receive_into(self._previous, _bytes_of(tensors[name]))
        except OSError as error:
            raise PeerLostError(f"stage {self.rank - 1} of {self.world_size} was lost: {error}") from error
        return tensors


def _send(to: socket.socket, views: Sequence[memoryview]) -> None:
    for view in views:
        to.sendall(view)


def _receive(source: socket.socket, num_bytes: int) -> bytearray:
    data = bytearray(num_bytes)
    _receive_into(source, memoryview(data))
    return data


def _receive_into(source: socket.socket, view: memoryview) -> None:
    """Fill ``view``; raise OSError if the peer ends before."""
    while view:
        num_bytes = source.recv_into(view)
        if num_bytes == 0:
            raise ConnectionResetError("its end of the socket is closed")
        view = view[num_bytes:]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor in host memory, as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return dtype, number of dims and dims of each tensor, in rows of fixed size."""
    assert len(parts) <= MAX_TENSORS
    header = torch.zeros(MAX_TENSORS, 2 + MAX_DIMS, dtype=torch.int64)
    for row, part in zip(header, parts, strict=False):
        assert part.dim() <= MAX_DIMS
        row[: 2 + part.dim()] = torch.tensor([DTYPES.index(part.dtype), part.dim(), *part.shape])
    return header.view(-1)
