"""The sockets between the ranks: along the stages, and among the ranks of a stage.

All are unnamed pairs that the supervisor makes before it starts the workers, which inherit their own ends:
docs/decisions/0004-who-can-join.md and 0005-sums-over-ranks.md.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType

from loadmaster.workers.messages import Place


@dataclass(frozen=True, slots=True)
class Ends:
    """The file descriptors of one rank, named as in `loadmaster.workers.messages.Job`."""

    previous: int | None
    following: int | None
    peers: tuple[int | None, ...]

    @property
    def all(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(fd for fd in (self.previous, self.following, *self.peers) if fd is not None)


class Wiring:
    """Makes the pairs for ``num_stages`` stages of ``num_slots`` ranks, and closes them when the context ends.

    A worker has its own copies of its ends; its neighbours see when those close.
    """

    def __init__(self, num_stages: int, num_slots: int) -> None:
        self._ends: dict[tuple[int, int], socket.socket] = {}  # (rank, rank at the other end)
        for rank in range(num_stages * num_slots):
            stage, slot = divmod(rank, num_slots)
            others = [stage * num_slots + other for other in range(slot + 1, num_slots)]
            if stage < num_stages - 1:
                others.append(rank + num_slots)
            for other in others:
                self._ends[rank, other], self._ends[other, rank] = socket.socketpair()

    def of(self, place: Place) -> Ends:
        """Return the ends of one rank."""
        first = place.rank - place.slot
        return Ends(
            self._fd(place.rank, place.rank - place.num_slots),
            self._fd(place.rank, place.rank + place.num_slots),
            tuple(self._fd(place.rank, first + slot) for slot in range(place.num_slots)),
        )

    def __enter__(self) -> Wiring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends.values():
            end.close()

    def _fd(self, rank: int, other: int) -> int | None:
        end = self._ends.get((rank, other))
        return None if end is None else end.fileno()
