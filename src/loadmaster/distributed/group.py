"""The pipeline stages of one host, each connected to the next by a socket that the engine's process created.

Where a stage has several ranks, rank ``i`` of a stage is connected to rank ``i`` of the next: all ranks of a stage have the
same outputs (`loadmaster.distributed.tensor`).

The sockets are unnamed pairs (``socket.socketpair``), inherited by the two workers that use them. No socket listens or
has a name, so no other process can connect: docs/decisions/0004-who-can-join.md. Only bytes of known sizes are sent:
hashes, headers, elements of tensors. Nothing that is received is unpickled.

First, all stages compare their plans (`loadmaster.distributed.agreement`). After that, stage ``i`` sends its outputs to
stage ``i + 1``, and nothing else is sent. Tokens and control messages use the pipes between the supervisor and the workers
instead.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from loadmaster.distributed.peer import PeerLostError
from loadmaster.distributed.receive import receive, receive_into
from loadmaster.torch_dtypes import TORCH

HASH_BYTES = 32
"""A plan's hash is a SHA-256."""

MAX_TENSORS = 4
MAX_DIMS = 4
DTYPES = tuple(TORCH[name] for name in ("F32", "BF16", "F16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL"))
"""Dtypes that one stage can send to the next. A header names a dtype by its index here: the order is part of the protocol."""


class PipelineGroup:
    """One stage's connections to its neighbours.

    ``previous`` and ``following`` are the sockets to the stages before and after. The first stage has no previous one,
    the last has no following one. A stage waits for its inputs without a time limit: the supervisor notices lost stages.
    """

    def __init__(
        self,
        stage: int,
        num_stages: int,
        previous: socket.socket | None = None,
        following: socket.socket | None = None,
    ) -> None:
        assert (previous is None) == (stage == 0)
        assert (following is None) == (stage == num_stages - 1)
        self.stage = stage
        self.num_stages = num_stages
        self._previous = previous
        self._following = following
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="send")
        self._sending: Future[None] | None = None

    def collect(self, own: bytes) -> bytes:
        """Return the bytes of all stages, in order; each stage gives ``HASH_BYTES``.

        They are collected from the first stage to the last, and the full list is sent back the same way.

        Raises:
            PeerLostError: another stage ended.
        """
        collected = own
        try:
            if self._previous is not None:
                collected = receive(self._previous, self.stage * HASH_BYTES) + own
            if self._following is not None:
                self._following.sendall(collected)
                collected = receive(self._following, self.num_stages * HASH_BYTES)
            if self._previous is not None:
                self._previous.sendall(collected)
        except OSError as error:
            raise PeerLostError(f"another stage ended before all stages had compared their plans: {error}") from error
        return collected

    def send_next(self, tensors: Mapping[str, torch.Tensor], names: tuple[str, ...]) -> None:
        """Send the tensors called ``names`` to the next stage, without waiting until it has received them.

        At most one send is in progress: a second call waits for the first send to finish.

        Raises:
            PeerLostError: the next stage ended. It can be a later call that raises this.
        """
        assert self._following is not None, "the last stage has no next one"
        parts = [tensors[name].detach().cpu().contiguous() for name in names]
        try:
            if self._sending is not None:
                self._sending.result()
        except OSError as error:
            raise PeerLostError(f"stage {self.stage + 1} of {self.num_stages} has ended: {error}") from error
        views = [_bytes_of(part) for part in (_header(parts), *parts)]
        self._sending = self._sender.submit(_send, self._following, views)

    def receive_previous(self, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Return the tensors that the previous stage sends, by name.

        Raises:
            PeerLostError: the previous stage ended.
        """
        assert self._previous is not None, "the first stage has no previous one"
        header = torch.empty(MAX_TENSORS * (2 + MAX_DIMS), dtype=torch.int64)
        tensors = {}
        try:
            receive_into(self._previous, _bytes_of(header))
            for name, row in zip(names, header.view(MAX_TENSORS, -1).tolist(), strict=False):
                dtype, num_dims, *dims = row
                tensors[name] = torch.empty(dims[:num_dims], dtype=DTYPES[dtype])
                receive_into(self._previous, _bytes_of(tensors[name]))
        except OSError as error:
            raise PeerLostError(f"stage {self.stage - 1} of {self.num_stages} has ended: {error}") from error
        return tensors


def _send(to: socket.socket, views: Sequence[memoryview]) -> None:
    for view in views:
        to.sendall(view)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in host memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return one row of fixed size for each tensor: dtype, number of dims, dims."""
    assert len(parts) <= MAX_TENSORS
    header = torch.zeros(MAX_TENSORS, 2 + MAX_DIMS, dtype=torch.int64)
    for row, part in zip(header, parts, strict=False):
        assert part.dim() <= MAX_DIMS
        row[: 2 + part.dim()] = torch.tensor([DTYPES.index(part.dtype), part.dim(), *part.shape])
    return header.view(-1)
