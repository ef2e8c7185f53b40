"""What is known about each request: for the log, the metrics and the page.

`loadmaster.server.recorder` begins and ends a record. The routes and the service fill it in between; the event loop's
thread alone does so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from loadmaster.engine import Piece, Stream
from loadmaster.engine.request import FinishReason

Outcome = Literal["finished", "refused", "cancelled", "timed out", "failed", "shut down"]
"""How a request ended: with an answer; with a status of 400 or more; because the client left; because it took too long; with an
error of the server; because the server shut down."""

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

NUM_RECENT: Final = 50
"""How many requests that are over are kept."""


@dataclass(slots=True)
class Answer:
    """One choice of a request, as the engine computes it. Times are seconds of `time.monotonic`.

    ``max_tokens``: the most that the request allows, if it says so. ``repeats_prompt``: another choice of the request has the
    same prompt, which is counted there.
    """

    stream: Stream
    num_prompt: int
    max_tokens: int | None = None
    repeats_prompt: bool = False
    num_output: int = 0
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    finish_reason: FinishReason | None = None

    @property
    def queue_s(self) -> float | None:
        """Seconds from the request's arrival in the engine to its first batch; None if it is in none yet."""
        timing = self.stream.timing
        return None if timing.scheduled is None else timing.scheduled - timing.arrived

    def add(self, pieces: Sequence[Piece], now: float) -> None:
        """Count the tokens of pieces that arrived together at ``now``, and see whether the last one ends the choice."""
        count = sum(1 for p in pieces if p.token_id is not None)
        if count:
            self.first_token = now if self.first_token is None else self.first_token
            self.last_token = now
            self.num_output += count
        if pieces and pieces[-1].finish_reason is not None:
            self.ended, self.finish_reason = now, pieces[-1].finish_reason


@dataclass(slots=True)
class Record:
    """One HTTP request.

    ``received`` is the wall clock's time, in seconds since 1970; ``started`` is `time.monotonic`'s. ``has_own_id``: the
    client has chosen the id. ``client`` and ``path`` are what the client and proxies sent: escape them. ``route`` is the
    path as the server declares it, such as ``/v1/models/{model}``, or None if there is no such route. ``status`` is None
    before the answer begins. The times are in seconds, and None until they are known.
    """

    id: str
    client: str
    method: str
    path: str
    has_own_id: bool = False
    received: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    route: str | None = None
    model: str | None = None
    status: int | None = None
    outcome: Outcome | None = None
    total_s: float | None = None
    answers: list[Answer] = field(default_factory=list)

    def propose_id(self, request_id: str) -> None:
        """Use the id of a request's body, as in vLLM: unless the header ``X-Request-Id`` has one."""
        if not self.has_own_id:
            self.id, self.has_own_id = request_id, True

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts; one with several choices counts once."""
        return sum(a.num_prompt for a in self.answers if not a.repeats_prompt)

    @property
    def cached_tokens(self) -> int:
        """How many of ``prompt_tokens`` were in the KV cache already."""
        return sum(a.stream.num_cached for a in self.answers if not a.repeats_prompt)

    @property
    def output_tokens(self) -> int:
        """The tokens of all choices."""
        return sum(a.num_output for a in self.answers)

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """Why the choices that are complete ended, in their order."""
        return [a.finish_reason for a in self.answers if a.finish_reason is not None]

    @property
    def queue_s(self) -> float | None:
        """The longest time that a choice waited in the engine for its first batch."""
        return max((a.queue_s for a in self.answers if a.queue_s is not None), default=None)

    @property
    def first_token_s(self) -> float | None:
        """The time from the request to its first token."""
        first = min((a.first_token for a in self.answers if a.first_token is not None), default=None)
        return None if first is None else first - self.started

    @property
    def per_token_s(self) -> float | None:
        """The mean time between two tokens of a choice; None if no choice has two."""
        count = sum(max(a.num_output - 1, 0) for a in self.answers)
        seconds = sum(a.last_token - a.first_token for a in self.answers if a.last_token and a.first_token)
        return seconds / count if count else None

    def as_json(self) -> Mapping[str, Any]:
        """Return the record as JSON's types, with the names of the log."""
        return {
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "route": self.route or self.path,
            "status": self.status,
            "outcome": self.outcome,
            "finish_reasons": self.finish_reasons,
            "model": self.model,
            "received": self.received,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "queue_s": self.queue_s,
            "first_token_s": self.first_token_s,
            "per_token_s": self.per_token_s,
            "total_s": self.total_s,
        }


class Records:
    """The requests that are being answered, and the last `NUM_RECENT` that are over, oldest first.

    ``recent_posts`` are those with method POST alone, which ask for an answer of the model. Pollers do not displace them.
    """

    def __init__(self) -> None:
        self.recent: deque[Record] = deque(maxlen=NUM_RECENT)
        self.recent_posts: deque[Record] = deque(maxlen=NUM_RECENT)
        self._running: dict[int, Record] = {}

    @property
    def running(self) -> list[Record]:
        """The requests that are being answered, oldest first."""
        return list(self._running.values())

    def begin(self, record: Record) -> None:
        """Add a request that was just received."""
        self._running[id(record)] = record

    def end(self, record: Record, outcome: Outcome) -> None:
        """Move a request to those that are over. ``outcome`` counts unless the record has one already."""
        del self._running[id(record)]
        record.outcome = record.outcome or outcome
        record.total_s = time.monotonic() - record.started
        self.recent.append(record)
        if record.method == "POST":
            self.recent_posts.append(record)
