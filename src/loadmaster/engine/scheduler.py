"""Decides what is computed next: a pure machine of requests and pages, without threads, tensors or clocks.

A batch has tokens of many requests: the next token of those that are answering, and chunks of prompts, under one budget of
tokens. A request whose next token is in flight is not scheduled again; the next chunk of a prompt may be. With as many
batches in flight as there are stages, each taking its share of the requests that are ready, all stages work at the same
time. When no page is free, the youngest request that is not in flight gives up its pages and is computed again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from loadmaster.engine.pages import PagePool, page_hash
from loadmaster.engine.request import Output, Request
from loadmaster.errors import RequestError
from loadmaster.workers.batch import Batch, Done, Sampled, Span, Start

MIN_PROMPT_TOKENS = 128
"""Prompts are not divided over batches in parts smaller than this: small products waste time."""

CONTEXT_TOKENS = 4096
"""At this many cached tokens a chunk of a prompt is half as long, since attention takes as long as the rest."""


@dataclass(slots=True)
class Counters:
    """What a scheduler has done so far, for metrics.

    ``sampled_spans``: how often one request was computed up to its last token. Without drafts, each gives one token.
    ``drafted_tokens`` were verified, of ``drafted_spans``, and ``accepted_tokens`` of them were right: ``accepted_at[i]`` at the
    ``i``-th place of their span.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    sampled_spans: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_spans: int = 0
    accepted_at: list[int] = field(default_factory=list)

    @property
    def acceptance_rate(self) -> float | None:
        """The share of drafts that were right; None if there were none."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def tokens_per_step(self) -> float | None:
        """Output tokens for each time that a request's last token was computed; None if none was."""
        return self.output_tokens / self.sampled_spans if self.sampled_spans else None


class Scheduler:
    """Divides requests into batches.

    ``num_places``: how many batches may be in flight, one for each stage. ``max_num_seqs`` requests are computed at a time,
    the others wait. ``max_num_batched_tokens`` is the budget of a batch. ``num_draft_layers``: how many tokens after a
    position the draft model's cache there depends on. ``num_draft_slots``: how many positions after a request's last token
    the draft model writes.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        num_places: int = 1,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        enable_prefix_caching: bool = True,
        num_draft_layers: int = 0,
        num_draft_slots: int = 0,
    ) -> None:
        self.pool = pool
        self._num_draft_layers = num_draft_layers
        self._num_draft_slots = num_draft_slots
        self.counters = Counters()
        self._num_places = num_places
        self._max_num_seqs = max_num_seqs
        self._max_tokens = max_num_batched_tokens
        self._caches_prefixes = enable_prefix_caching
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in the order of admission
        self._turns: deque[Request] = deque()  # running requests, least recently scheduled first
        self._in_flight: dict[int, tuple[Batch, list[Request]]] = {}
        self._forget: list[int] = []
        self._computing: dict[bytes, int] = {}  # hashes of pages that running prompts will publish
        self._number = 0

    @property
    def num_running(self) -> int:
        """Requests that are being computed."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first step, or for their next one after a preemption."""
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Batches that were scheduled and not committed."""
        return len(self._in_flight)

    @property
    def requests(self) -> Iterator[Request]:
        """All requests that are not over."""
        yield from self._running
        yield from self._waiting

    def add(self, request: Request) -> None:
        """Add a request at the end of the queue."""
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """End a request. Its pages are free at once, or when the batches that compute it now are committed."""
        if request.is_over:
            return
        if request.is_running:
            self._end(request)
        else:
            self._waiting.remove(request)
            request.is_over = True

    def schedule(self) -> Batch | None:
        """Return the next batch, or None if nothing can be computed now."""
        places = self._num_places - len(self._in_flight)
        if places <= 0:
            return None
        spans: list[Span] = []
        members: list[Request] = []
        budget = self._max_tokens
        ready = [r for r in self._turns if r.is_decoding]
        for request in ready[: -(-len(ready) // places)]:
            if budget > 0 and request.is_decoding and (span := self._decode(request, budget)):
                budget -= self._add(request, span, spans, members)
        prompts = [r for r in self._running if r.num_missing and not r.is_decoding and not r.awaits_token]
        budget = min(budget, self._prompt_share(prompts, places))
        for request in prompts:
            if budget > 0 and request.is_running and (span := self._chunk(request, budget)):
                budget -= self._add(request, span, spans, members)
        while budget > 0 and (admitted := self._admit()) is not None:
            if (span := self._chunk(admitted, budget)) is None:
                break
            budget -= self._add(admitted, span, spans, members)
        if not spans:
            return None
        self._number += 1
        batch = Batch(self._number, tuple(spans), tuple(self._forget))
        self._forget.clear()
        self._in_flight[batch.number] = batch, members
        return batch

    def begun(self, batch: Batch) -> list[Request]:
        """Return the requests whose first tokens are in a batch that was just scheduled."""
        members = self._in_flight[batch.number][1]
        return [r for span, r in zip(batch.spans, members, strict=True) if span.start is not None]

    def commit(self, done: Done) -> list[tuple[Request, Output | RequestError]]:
        """Take the results of a batch. Return what each of its requests has gained; cancelled requests gain nothing."""
        batch, members = self._in_flight.pop(done.number)
        sampled_by_request = {s.request: s for s in done.sampled}
        gained: list[tuple[Request, Output | RequestError]] = []
        for span, request in zip(batch.spans, members, strict=True):
            request.num_in_flight -= 1
            if request.is_over:
                self._release(request)
                continue
            sampled = sampled_by_request.get(span.request)
            if sampled is None:
                self._publish(request, span.stop)
            elif sampled.error is not None:
                self._end(request)
                gained.append((request, RequestError(sampled.error)))
            else:
                gained.append((request, self._extend(request, span, sampled)))
        return gained

    # Choosing spans

    def _prompt_share(self, prompts: list[Request], places: int) -> int:
        """Return how many prompt tokens a batch takes, so that as many batches as there are free places get some."""
        missing = sum(r.num_missing for r in prompts) + sum(r.num_missing for r in self._waiting)
        return max(-(-missing // places), MIN_PROMPT_TOKENS)

    def _decode(self, request: Request, budget: int) -> Span | None:
        drafts = request.drafts[: min(budget - 1, request.max_length - len(request.token_ids) - 1)]
        if drafts and not self._grow(request, request.num_computed + 1 + len(drafts), preempt=False):
            drafts = ()
        if not self._grow(request, request.num_computed + 1):
            return None
        self._grow_for_drafts(request, request.num_computed + 1 + len(drafts))
        return self._span(request, (request.token_ids[-1], *drafts), 1 + len(drafts))

    def _chunk(self, request: Request, budget: int) -> Span | None:
        first = request.num_computed
        limit = max(self.pool.page_size, self._max_tokens * CONTEXT_TOKENS // (CONTEXT_TOKENS + first))
        count = min(request.num_missing, budget, limit)
        if not self._grow(request, first + count):
            return None
        is_last = count == request.num_missing
        if is_last:
            self._grow_for_drafts(request, first + count)
        return self._span(request, tuple(request.token_ids[first : first + count]), int(is_last))

    def _span(self, request: Request, token_ids: tuple[int, ...], num_logits: int) -> Span:
        start = None
        if not request.is_started:
            start = Start(request.params, tuple(request.token_ids), request.num_prompt)
        new_pages = tuple(request.pages[request.num_sent_pages :])
        return Span(request.number, request.num_computed, token_ids, new_pages, num_logits, start)

    def _add(self, request: Request, span: Span, spans: list[Span], members: list[Request]) -> int:
        spans.append(span)
        members.append(request)
        request.is_started = True
        request.num_sent_pages = len(request.pages)
        request.num_computed = span.stop
        request.num_in_flight += 1
        request.awaits_token = span.num_logits > 0
        self._turns.remove(request)
        self._turns.append(request)
        return len(span.token_ids)

    def _admit(self) -> Request | None:
        """Move the next waiting request to the running ones, with the pages of its prefix that are in the cache."""
        if len(self._running) >= self._max_num_seqs:
            return None
        for request in self._waiting:
            prefix = self._find_prefix(request)
            if prefix is None:
                continue  # another request is computing its prefix now
            missing = self._num_pages(len(request.token_ids)) - len(prefix)
            idle = sum(1 for page in prefix if self.pool.is_idle(page))
            if missing > self.pool.num_free - idle and self._running:
                return None
            self._waiting.remove(request)
            self.pool.use(prefix)
            request.pages = list(prefix)
            request.num_published = len(prefix)
            request.num_computed = request.num_cached = len(prefix) * self.pool.page_size
            request.num_sent_pages = 0
            self.counters.prompt_tokens += len(request.token_ids)
            self.counters.cached_tokens += request.num_computed
            for hash_ in request.hashes[len(prefix) :]:
                self._computing[hash_] = self._computing.get(hash_, 0) + 1
            request.is_running = True
            self._running.append(request)
            self._turns.append(request)
            return request
        return None

    def _find_prefix(self, request: Request) -> list[int] | None:
        """Return the cached pages that a request begins with; None if it should wait for pages that are being computed.

        At least the last token is computed anew, since its logits are needed.
        """
        if not self._caches_prefixes or request.params.prompt_logprobs is not None:
            return []
        size = self.pool.page_size
        num_covered = len(request.token_ids) - max(1, self._num_draft_layers)
        while (len(request.hashes) + 1) * size <= num_covered:
            self._add_hash(request)
        pages: list[int] = []
        for hash_ in request.hashes:
            page = self.pool.find(hash_)
            if page is None:
                return None if hash_ in self._computing else pages
            pages.append(page)
        return pages

    def _add_hash(self, request: Request) -> None:
        """Add the hash of the next page. What a draft model remembers of a page depends on tokens after it too."""
        size = self.pool.page_size
        first = len(request.hashes) * size
        previous = request.hashes[-1] if request.hashes else b""
        tokens = request.token_ids[first : first + size + self._num_draft_layers]
        request.hashes.append(page_hash(previous, tokens))

    # Pages

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.page_size)

    def _grow(self, request: Request, num_tokens: int, *, preempt: bool = True) -> bool:
        """Give a request the pages for ``num_tokens`` positions. Return whether it has them."""
        while (count := self._num_pages(num_tokens) - len(request.pages)) > 0:
            pages = self.pool.allocate(count, request.pages[-1] if request.pages else None)
            if pages is not None:
                request.pages += pages
            elif not preempt or not self._preempt(request):
                return False
        return True

    def _grow_for_drafts(self, request: Request, num_tokens: int) -> None:
        """Give a request the pages that the draft model writes after ``num_tokens``; without them there are fewer drafts."""
        if self._num_draft_slots:
            self._grow(request, min(num_tokens + self._num_draft_slots, request.max_length), preempt=False)

    def _preempt(self, request: Request) -> bool:
        """Take the pages of the youngest request that is not in flight. Return False if that is ``request``, or there is none."""
        victim = next((r for r in reversed(self._running) if r.num_in_flight == 0), None)
        if victim is None:
            return False
        self._remove(victim)
        self.pool.free(victim.pages)
        victim.restart()
        self._waiting.appendleft(victim)
        self.counters.preemptions += 1
        return victim is not request

    def _remove(self, request: Request) -> None:
        request.is_running = False
        self._running.remove(request)
        self._turns.remove(request)
        self._forget.append(request.number)
        for hash_ in request.hashes[request.num_published :]:
            self._done_computing(hash_)

    def _done_computing(self, hash_: bytes) -> None:
        if self._computing.get(hash_, 0) > 1:
            self._computing[hash_] -= 1
        else:
            self._computing.pop(hash_, None)

    def _end(self, request: Request) -> None:
        self._remove(request)
        request.is_over = True
        self._release(request)

    def _release(self, request: Request) -> None:
        """Free the pages of a request that is over, as soon as no batch in flight writes to them."""
        if request.num_in_flight == 0:
            self.pool.free(request.pages)
            request.pages = []

    # Taking results

    def _publish(self, request: Request, num_computed: int) -> None:
        """Make the pages findable that are full and computed now."""
        if not self._caches_prefixes:
            return
        num_final = min(num_computed, len(request.token_ids) - self._num_draft_layers)
        for i in range(request.num_published, num_final // self.pool.page_size):
            if i == len(request.hashes):
                self._add_hash(request)
            else:
                self._done_computing(request.hashes[i])
            self.pool.publish(request.pages[i], request.hashes[i])
            request.num_published = i + 1

    def _extend(self, request: Request, span: Span, sampled: Sampled) -> Output:
        """Append the sampled tokens, up to the one that ends the answer."""
        num_known = max(0, request.num_scored - span.first)  # after a preemption
        prompt_logprobs = sampled.prompt_logprobs[num_known:]
        request.num_scored += len(prompt_logprobs)
        if not sampled.token_ids:  # a part of a prompt whose logprobs were asked for
            self._publish(request, span.stop)
            return Output(prompt_logprobs=prompt_logprobs)
        request.awaits_token = False
        request.num_computed = span.stop - len(span.drafts) + len(sampled.token_ids) - 1
        self.counters.sampled_spans += 1
        self.counters.drafted_tokens += len(span.drafts)
        self.counters.accepted_tokens += len(sampled.token_ids) - 1
        if span.drafts:
            self._count_accepted(len(span.drafts), len(sampled.token_ids) - 1)
        count, reason = 0, None
        while reason is None and count < len(sampled.token_ids):
            request.token_ids.append(sampled.token_ids[count])
            count += 1
            reason = request.finish_reason()
        self.counters.output_tokens += count
        request.drafts = sampled.drafts
        self._publish(request, min(request.num_computed, len(request.token_ids) - 1))
        if reason is not None:
            self._end(request)
        return Output(sampled.token_ids[:count], sampled.logprobs[:count], prompt_logprobs, reason)

    def _count_accepted(self, num_drafts: int, num_accepted: int) -> None:
        counters = self.counters
        counters.drafted_spans += 1
        counters.accepted_at += [0] * (num_drafts - len(counters.accepted_at))
        for i in range(num_accepted):
            counters.accepted_at[i] += 1
