"""The ranks of one stage, each connected to every other by a socket that the engine's process created.

As between stages (`loadmaster.distributed.group`), the sockets are unnamed pairs: nothing listens, nothing has a name, and
only bytes whose number both ends know are sent. See docs/decisions/0005-sums-over-ranks.md.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Mapping, Sequence

from loadmaster.distributed.peer import PeerLostError

BUFFER_BYTES = 4 << 20
"""The socket buffers to ask for; the kernel may give less."""


class Mesh:
    """One rank's sockets to the other ranks of its stage.

    ``sockets`` has one for each slot of the stage, and None for the rank's own ``slot``. A rank waits for the others without a
    time limit: the supervisor notices lost ranks. ``on_wait`` is called with True before the rank waits, and then with False.
    """

    def __init__(self, slot: int, sockets: Sequence[socket.socket | None]) -> None:
        assert [i for i, s in enumerate(sockets) if s is None] == [slot]
        self.slot = slot
        self.size = len(sockets)
        self.others = tuple(i for i in range(self.size) if i != slot)
        self.on_wait: Callable[[bool], None] = lambda _: None
        self._sockets = {i: s for i, s in enumerate(sockets) if s is not None}
        self._slot_of = {s.fileno(): i for i, s in self._sockets.items()}
        for s in self._sockets.values():
            s.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                with contextlib.suppress(OSError):
                    s.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)

    def exchange(self, outgoing: Mapping[int, memoryview], incoming: Mapping[int, memoryview]) -> None:
        """Send ``outgoing`` to other slots and fill ``incoming`` from them, at the same time.

        All ranks call it in the same order, with the sizes that the others expect. Views are of bytes.

        Raises:
            PeerLostError: another rank ended.
        """
        to_send = {slot: view for slot, view in outgoing.items() if view}
        to_fill = {slot: view for slot, view in incoming.items() if view}
        for slot in tuple(to_send):  # most messages fit the buffers: no need to ask first
            self._send(slot, to_send)
        self.on_wait(True)
        while to_send or to_fill:
            poll = select.poll()
            for slot in to_send.keys() | to_fill.keys():
                poll.register(
                    self._sockets[slot], select.POLLIN * (slot in to_fill) | select.POLLOUT * (slot in to_send)
                )
            for fd, event in poll.poll():
                slot = self._slot_of[fd]
                if slot in to_fill and event & ~select.POLLOUT:
                    self._fill(slot, to_fill)
                if slot in to_send and event & ~select.POLLIN:
                    self._send(slot, to_send)
        self.on_wait(False)

    def all_gather(self, own: bytes) -> list[bytes]:
        """Return the bytes of all ranks, by slot; all ranks give equally many."""
        received = {slot: bytearray(len(own)) for slot in self.others}
        self.exchange(
            dict.fromkeys(self.others, memoryview(own)), {slot: memoryview(data) for slot, data in received.items()}
        )
        return [own if slot == self.slot else bytes(received[slot]) for slot in range(self.size)]

    def _send(self, slot: int, to_send: dict[int, memoryview]) -> None:
        try:
            num_bytes = self._sockets[slot].send(to_send[slot])
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(slot, error) from error
        self._advance(slot, to_send, num_bytes)

    def _fill(self, slot: int, to_fill: dict[int, memoryview]) -> None:
        try:
            num_bytes = self._sockets[slot].recv_into(to_fill[slot])
            if num_bytes == 0:
                raise ConnectionResetError("it closed its end of the socket")
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(slot, error) from error
        self._advance(slot, to_fill, num_bytes)

    def _lost(self, slot: int, error: OSError) -> PeerLostError:
        return PeerLostError(f"tensor-parallel rank {slot} of {self.size} has ended: {error}")

    @staticmethod
    def _advance(slot: int, views: dict[int, memoryview], num_bytes: int) -> None:
        views[slot] = views[slot][num_bytes:]
        if not views[slot]:
            del views[slot]
