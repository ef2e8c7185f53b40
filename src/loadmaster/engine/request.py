"""A request, as the scheduler sees it, and the stream of its answer, as its client sees it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loadmaster.errors import LoadmasterError
from loadmaster.workers.batch import PositionLogprobs
from loadmaster.workers.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Output:
    """The next tokens of an answer. The last output has a ``finish_reason``.

    ``logprobs`` has one entry for each token, and ``prompt_logprobs`` one for each of the prompt's tokens but the first, if
    the request asked for them.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None


Event = Output | LoadmasterError


@dataclass(slots=True)
class Timing:
    """When a request arrived, was scheduled first, had its first token, and ended: seconds of `time.monotonic`, or None."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    ended: float | None = None


class Stream:
    """The answer of one request: iterate over its outputs, from one thread.

    With ``on_event``, each output, or the error that ended the request, is passed to it instead, from the engine's thread.
    ``num_cached``: how many tokens of the prompt were in the KV cache when the request was scheduled first.
    """

    def __init__(self, cancel: Callable[[], None], on_event: Callable[[Event], None] | None = None) -> None:
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._on_event = on_event or self._events.put
        self.timing = Timing(time.monotonic())
        self.num_cached = 0

    def put(self, event: Event) -> None:
        """Add an output or an error. Called by the engine."""
        self._on_event(event)

    def cancel(self) -> None:
        """End the request. Its pages are free after the step that computes it now. May be called from any thread."""
        self._cancel()
        self._events.put(None)

    def __iter__(self) -> Iterator[Output]:
        while (event := self._events.get()) is not None:
            if isinstance(event, LoadmasterError):
                raise event
            yield event
            if event.finish_reason is not None:
                return


class Request:
    """A prompt, its answer so far, and how much of both is computed. Used by the scheduler alone.

    ``num_computed`` counts the positions that are computed or in flight. ``num_in_flight`` counts the batches in flight that
    compute some of them. ``awaits_token``: one of those batches samples the next token. ``num_scored`` counts the tokens of the
    prompt whose log probabilities the client has.
    """

    def __init__(
        self,
        number: int,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        max_tokens: int,
        ends: frozenset[int],
        stream: Stream,
    ) -> None:
        self.number = number
        self.params = params
        self.ends = ends
        self.stream = stream
        self.token_ids = list(prompt_token_ids)
        self.num_prompt = len(self.token_ids)
        self.max_length = self.num_prompt + max_tokens
        self.num_computed = 0
        self.num_in_flight = 0
        self.num_cached = 0
        self.num_scored = 0
        self.awaits_token = False
        self.is_running = False
        self.is_over = False
        self.is_started = False
        self.drafts: tuple[int, ...] = ()
        self.pages: list[int] = []
        self.num_sent_pages = 0
        self.num_published = 0
        self.hashes: list[bytes] = []

    @property
    def num_missing(self) -> int:
        """Tokens that are known and neither computed nor in flight."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether all but the last token are computed, so that the next step samples one."""
        return self.num_missing == 1 and self.num_computed > 0 and not self.awaits_token

    def restart(self) -> None:
        """Forget what was computed, after a preemption."""
        self.num_computed = self.num_published = self.num_sent_pages = 0
        self.is_started = False
        self.drafts = ()
        self.pages = []

    def finish_reason(self) -> FinishReason | None:
        """Return why the answer ends with its last token, or None if it goes on."""
        num_output = len(self.token_ids) - self.num_prompt
        if num_output > self.params.min_tokens and self.token_ids[-1] in self.ends:
            return "stop"
        return "length" if len(self.token_ids) >= self.max_length else None
