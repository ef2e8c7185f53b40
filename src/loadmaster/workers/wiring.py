"""The sockets between the ranks of one host: along the stages, and among the ranks of a stage.

All are unnamed pairs that the engine's process makes before it starts the workers, which inherit their own ends:
docs/decisions/0004-who-can-join.md and 0005-sums-over-ranks.md.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from loadmaster.workers.messages import Place


@dataclass(frozen=True, slots=True)
class Ends:
    """The file descriptors of one rank, named as in `loadmaster.workers.messages.Job`."""

    previous: int | None
    following: int | None
    peers: tuple[int | None, ...]

    @classmethod
    def of(cls, place: Place, sockets: Mapping[int, socket.socket]) -> Ends:
        """Return the descriptors of a rank's sockets, which are given by the rank at their other end."""

        def fd(rank: int) -> int | None:
            return sockets[rank].fileno() if rank in sockets else None

        return cls(
            fd(place.rank - place.num_slots),
            fd(place.rank + place.num_slots),
            tuple(fd(rank) for rank in place.stage_ranks),
        )


class Wiring:
    """Makes the pairs for ``num_stages`` stages of ``num_slots`` ranks, and closes them when the context ends.

    A worker has its own copies of its ends; its neighbours see when those close.
    """

    def __init__(self, num_stages: int, num_slots: int) -> None:
        self._ends: dict[int, dict[int, socket.socket]] = {rank: {} for rank in range(num_stages * num_slots)}
        for rank, ends in self._ends.items():
            for other in Place.of(rank, num_stages, num_slots).neighbours:
                if other > rank:
                    ends[other], self._ends[other][rank] = socket.socketpair()

    def of(self, place: Place) -> Ends:
        """Return the ends of one rank."""
        return Ends.of(place, self._ends[place.rank])

    def __enter__(self) -> Wiring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ends in self._ends.values():
            for end in ends.values():
                end.close()
