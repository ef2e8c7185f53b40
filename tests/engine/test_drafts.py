"""The scheduler with drafts: pages for the draft model, prefixes that it can use, and counts."""

from __future__ import annotations

from random import Random

import pytest

from loadmaster.engine.pages import PagePool
from loadmaster.engine.scheduler import Counters, Scheduler
from loadmaster.workers.batch import Done, Sampled, Span
from tests.engine.simulation import Client, Workers, answer, run_at_random, step


class DraftingWorkers(Workers):
    """Also has a draft model of ``num_layers``: its cache holds, for each slot and layer, the tokens that it came from.

    Layer i at position p comes from the tokens up to p + 1 + i. One layer is run again for each further draft.
    """

    def __init__(self, page_size: int, num_drafts: int, num_layers: int = 1, seed: int = 0) -> None:
        super().__init__(page_size, num_drafts, seed)
        self.num_layers = num_layers
        self.drafted: dict[tuple[int, int], tuple[int, ...]] = {}
        self.known: dict[int, tuple[int, ...]] = {}
        self.began: dict[int, int] = {}

    def compute(self, span: Span) -> Sampled | None:
        if span.start is not None:
            self.known[span.request] = span.start.token_ids
            self.began[span.request] = span.first
        sampled = super().compute(span)
        pages = self.pages[span.request]
        if sampled is None:
            self.run_layers(span.request, span.first, span.stop, self.known[span.request], sampling=False)
            return None
        known = self.known[span.request] = self.known[span.request] + sampled.token_ids
        stop = len(known) - 1
        drafts = sampled.drafts
        if self.num_layers == 1:
            room = len(pages) * self.page_size - stop + 1
            drafts = drafts[:room]
        self.run_layers(span.request, span.first, stop, known + drafts, sampling=True)
        if self.num_layers == 1:
            for j in range(1, len(drafts)):
                self.run_layer(span.request, 0, stop - 1 + j, known + drafts)
        return Sampled(span.request, sampled.token_ids, drafts)

    def run_layers(self, request: int, first: int, stop: int, tokens: tuple[int, ...], *, sampling: bool) -> None:
        first = max(self.began[request], first - self.num_layers + 1)
        for i in range(self.num_layers):
            for position in range(first, stop if sampling else min(stop, len(tokens) - 1 - i)):
                self.run_layer(request, i, position, tokens)

    def run_layer(self, request: int, layer: int, position: int, tokens: tuple[int, ...]) -> None:
        pages = self.pages[request]
        self.drafted[self.slot(pages, position), layer] = tokens[: position + 2 + layer]
        for p in range(position + 1):
            assert self.drafted[self.slot(pages, p), layer] == tokens[: p + 2 + layer], (request, layer, p)


def machine(
    num_pages: int = 64, page_size: int = 4, num_layers: int = 1, num_drafts: int = 1, **options: int
) -> Scheduler:
    return Scheduler(
        PagePool(num_pages, page_size),
        num_draft_layers=num_layers,
        num_draft_slots=num_drafts - 1 if num_layers == 1 else 0,
        **options,  # type: ignore[arg-type]
    )


def run(scheduler: Scheduler, clients: dict[int, Client], workers: Workers) -> None:
    for client in clients.values():
        scheduler.add(client.request)
    while step(scheduler, workers, clients):
        pass


def test_a_request_has_the_pages_that_its_drafts_are_computed_in() -> None:
    scheduler = machine(page_size=2, num_drafts=4)
    scheduler.add(Client(1, [1, 2, 3], 9).request)
    batch = scheduler.schedule()
    assert batch is not None
    assert len(batch.spans[0].new_pages) == 3  # positions 0 to 2, and 3 to 5 for three more drafts
    scheduler.commit(Done(1, (Sampled(1, (4,), (5, 6, 7, 8)),)))
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.spans[0].token_ids == (4, 5, 6, 7, 8)
    assert len(batch.spans[0].new_pages) == 3  # positions up to 7, and 8 to 10


def test_no_request_has_pages_that_its_answer_cannot_reach() -> None:
    scheduler = machine(page_size=1, num_drafts=8)
    scheduler.add(Client(1, [1, 2, 3], 2).request)
    batch = scheduler.schedule()
    assert batch is not None
    assert len(batch.spans[0].new_pages) == 5


def test_pages_for_drafts_take_none_from_other_requests() -> None:
    scheduler = machine(num_pages=3, page_size=4, num_drafts=4)
    clients = {n: Client(n, [n, n, n], 5) for n in (1, 2)}
    for client in clients.values():
        scheduler.add(client.request)
    batch = scheduler.schedule()
    assert batch is not None
    assert [len(span.new_pages) for span in batch.spans] == [2, 1]
    assert scheduler.counters.preemptions == 0


@pytest.mark.parametrize(("num_layers", "cached"), [(0, 16), (1, 12), (4, 12), (5, 8), (40, 0)])
def test_a_prefix_is_reused_as_far_as_the_draft_model_saw_the_same_tokens(num_layers: int, cached: int) -> None:
    scheduler, workers = machine(num_layers=num_layers), Workers(4)
    prefix = list(range(16))
    clients = {n: Client(n, [*prefix, n], 1) for n in (1, 2)}
    run(scheduler, clients, workers)
    assert clients[2].request.num_cached == cached
    assert [c.tokens for c in clients.values()] == [answer(c.prompt, 1) for c in clients.values()]


def test_what_was_drafted_and_accepted_is_counted() -> None:
    scheduler = machine()
    scheduler.add(Client(1, [1], 9).request)
    assert scheduler.counters.acceptance_rate is None
    assert scheduler.counters.tokens_per_step is None
    for number, tokens in enumerate([(5,), (6, 7, 8), (9,), (10, 11)], 1):
        batch = scheduler.schedule()
        assert batch is not None
        scheduler.commit(Done(number, (Sampled(1, tokens, (6, 7)),)))
    counters = scheduler.counters
    assert (counters.sampled_spans, counters.drafted_tokens, counters.accepted_tokens) == (4, 6, 3)
    assert counters.acceptance_rate == 0.5
    assert counters.tokens_per_step == 7 / 4
    assert Counters().acceptance_rate is None


@pytest.mark.parametrize("seed", range(40))
def test_random_requests_with_drafts_have_the_tokens_of_each_alone(seed: int) -> None:
    """Each draft sees a complete cache, whatever was rejected, shared, preempted or cancelled in between."""
    random = Random(seed)
    page_size, num_layers = random.choice([1, 3, 4, 16]), random.choice([1, 1, 2, 3])
    num_drafts = random.choice([1, 2, 5]) if num_layers == 1 else num_layers
    longest = 40
    scheduler = machine(
        -(-longest // page_size) * random.choice([1, 2, 5]),
        page_size,
        num_layers,
        num_drafts,
        num_places=random.choice([1, 2, 4]),
        max_num_seqs=random.choice([2, 5, 64]),
        max_num_batched_tokens=random.choice([4, 16, 64]),
    )
    workers = DraftingWorkers(page_size, num_drafts, num_layers, seed)
    clients, cancelled = run_at_random(scheduler, workers, random, count=40, num_prefixes=2, longest=longest)
    assert scheduler.pool.num_used == scheduler.num_running == scheduler.num_waiting == 0
    for number, client in clients.items():
        expected = answer(client.prompt, client.max_tokens)
        assert client.tokens == (expected[: len(client.tokens)] if number in cancelled else expected)
    counters = scheduler.counters
    assert counters.output_tokens == sum(len(c.tokens) for n, c in clients.items() if n not in cancelled) + sum(
        len(clients[n].tokens) for n in cancelled
    )
    assert 0.5 < (counters.acceptance_rate or 0) <= 1
