"""Holds requests back until the workers have compiled their grammar, so that no step waits for that.

Every rank that samples compiles a grammar in a thread, between and during steps, and keeps it until the engine drops it:
what is kept is decided here alone. A pure machine like the scheduler, without threads or clocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from loadmaster.engine.request import Request
from loadmaster.workers.messages import Drop, Prepare, Prepared
from loadmaster.workers.structured_outputs import Grammar

MAX_KEPT: Final = 32
"""How many compiled grammars the workers keep. Those of requests that are not over are kept even if they are more."""


@dataclass(slots=True)
class _Kept:
    """A grammar that the workers have or compile. ``num_missing`` ranks have not answered yet.

    ``requests`` have it; those that are over are removed when the next grammar is used.
    """

    number: int
    num_missing: int
    requests: list[Request] = field(default_factory=list)


class PreparedGrammars:
    """The grammars of the requests. ``num_ranks`` ranks sample; ``send`` sends them a message.

    For the engine's thread; ``num_held`` for any.
    """

    def __init__(self, num_ranks: int, send: Callable[[Prepare | Drop], object]) -> None:
        self._num_ranks = num_ranks
        self._send = send
        self._numbers = count(1)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # by text, the one that was used last at the end
        self._held: dict[int, Request] = {}  # by number

    @property
    def num_held(self) -> int:
        """How many requests wait for their grammar."""
        return len(self._held)

    @property
    def held(self) -> list[Request]:
        """The requests that wait for their grammar, in the order of arrival."""
        return list(self._held.values())

    def add(self, request: Request) -> bool:
        """Take a new request. Return whether it can be scheduled now; if not, it is held until `take` returns it."""
        grammar = request.params.structured_outputs
        if grammar is None:
            return True
        assert isinstance(grammar, Grammar)
        kept = self._kept.pop(grammar.text, None)
        if kept is None:
            kept = _Kept(next(self._numbers), self._num_ranks)
            self._send(Prepare(kept.number, grammar.text))
        self._kept[grammar.text] = kept
        kept.requests.append(request)
        if kept.num_missing:
            self._held[request.number] = request
        self._drop_unused()
        return not kept.num_missing

    def take(self, answer: Prepared) -> list[Request]:
        """Take a rank's answer. Return the requests that wait no longer: with ``answer.error`` they are to end with it."""
        found = next(((text, kept) for text, kept in self._kept.items() if kept.number == answer.number), None)
        if found is None:
            return []  # dropped before, or because of another rank's error
        text, kept = found
        kept.num_missing -= 1
        if kept.num_missing and answer.error is None:
            return []
        if answer.error is not None:  # a later request tries again
            self._drop(text)
        ready = [request for request in kept.requests if not request.is_over]
        for request in ready:
            del self._held[request.number]
        return ready

    def cancel(self, request: Request) -> bool:
        """End a request if it is held. Return whether it was."""
        if self._held.pop(request.number, None) is None:
            return False
        request.is_over = True
        return True

    def _drop_unused(self) -> None:
        """Drop the grammars that were used least recently, and that no request needs."""
        for text, kept in list(self._kept.items()):
            kept.requests = [request for request in kept.requests if not request.is_over]
            if len(self._kept) > MAX_KEPT and not kept.requests:
                self._drop(text)

    def _drop(self, text: str) -> None:
        del self._kept[text]
        self._send(Drop(text))
