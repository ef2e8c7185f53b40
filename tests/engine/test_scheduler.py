"""The scheduler as a machine: what it computes is right whatever the arrivals, sizes, cancellations and lack of pages."""

from random import Random

import pytest

from loadmaster.engine.pages import PagePool
from loadmaster.engine.scheduler import Scheduler
from loadmaster.errors import RequestError
from loadmaster.workers.batch import Batch, Done, Sampled
from tests.engine.simulation import Client, Workers, answer, run_at_random, step


def machine(num_pages: int = 64, page_size: int = 4, **options: int | bool) -> Scheduler:
    return Scheduler(PagePool(num_pages, page_size), **options)  # type: ignore[arg-type]


def run(scheduler: Scheduler, clients: dict[int, Client], workers: Workers) -> None:
    for client in clients.values():
        scheduler.add(client.request)
    while step(scheduler, workers, clients):
        pass


def spans(batch: Batch | None) -> list[tuple[int, int, int, int]]:
    """Return request, first position, number of tokens and of logits of each span."""
    assert batch is not None
    return [(s.request, s.first, len(s.token_ids), s.num_logits) for s in batch.spans]


def test_prompts_and_single_tokens_share_a_batch_under_one_budget() -> None:
    scheduler = machine(max_num_batched_tokens=8)
    scheduler.add(Client(1, [1, 2, 3], 9).request)
    batch = scheduler.schedule()
    assert spans(batch) == [(1, 0, 3, 1)]
    scheduler.add(Client(2, [5] * 10, 9).request)
    assert scheduler.schedule() is None  # there is one place, and it is taken
    assert batch is not None
    scheduler.commit(Done(batch.number, (Sampled(1, (7,)),)))
    assert spans(scheduler.schedule()) == [(1, 3, 1, 1), (2, 0, 7, 0)]


def test_a_prompt_longer_than_a_batch_is_in_flight_in_several_at_once() -> None:
    scheduler = machine(max_num_batched_tokens=4, num_places=3)
    scheduler.add(Client(1, list(range(10)), 9).request)
    assert [spans(scheduler.schedule()) for _ in range(3)] == [[(1, 0, 4, 0)], [(1, 4, 4, 0)], [(1, 8, 2, 1)]]


def test_requests_that_are_ready_are_divided_over_the_free_places() -> None:
    scheduler, workers = machine(num_places=2), Workers(4)
    clients = {n: Client(n, [n], 9) for n in range(1, 6)}
    for client in clients.values():
        scheduler.add(client.request)
    first = scheduler.schedule()
    assert first is not None
    workers.send(first)
    for request, output in scheduler.commit(workers.next()):
        clients[request.number].outputs.append(output)
    assert [s[0] for s in spans(scheduler.schedule())] == [1, 2, 3]
    assert [s[0] for s in spans(scheduler.schedule())] == [4, 5]
    assert scheduler.schedule() is None


def test_chunks_of_a_prompt_shrink_as_its_context_grows() -> None:
    scheduler = machine(num_pages=4096, max_num_batched_tokens=512)
    client = Client(1, [1] * 9000, 1)
    scheduler.add(client.request)
    sizes = []
    while (batch := scheduler.schedule()) is not None:
        sizes.append(len(batch.spans[0].token_ids))
        scheduler.commit(Done(batch.number, (Sampled(1, (0,)),) if batch.spans[0].num_logits else ()))
    assert sizes[0] == 512
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert sum(sizes) == 9000
    assert sizes[-2] < 200


def test_a_common_prefix_is_computed_once_also_by_requests_that_arrive_together() -> None:
    scheduler, workers = machine(), Workers(4)
    prefix = list(range(16))
    clients = {n: Client(n, [*prefix, n], 5) for n in range(1, 5)}
    run(scheduler, clients, workers)
    for client in clients.values():
        assert client.tokens == answer(client.prompt, 5)
    assert scheduler.counters.prompt_tokens == 4 * 17
    assert scheduler.counters.cached_tokens == 3 * 16
    again = {9: Client(9, [*prefix, 9, 9, 9, 9, 9], 5)}
    run(scheduler, again, workers)
    assert again[9].tokens == answer(again[9].prompt, 5)
    assert again[9].request.num_cached == 16


def test_a_prompt_that_is_cached_whole_computes_its_last_token_again() -> None:
    scheduler, workers = machine(), Workers(4)
    clients = {n: Client(n, [3] * 8, 3) for n in (1, 2)}
    run(scheduler, {1: clients[1]}, workers)
    scheduler.add(clients[2].request)
    assert spans(scheduler.schedule()) == [(2, 4, 4, 1)]


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler, workers = machine(enable_prefix_caching=False), Workers(4)
    run(scheduler, {n: Client(n, [3] * 17, 3) for n in (1, 2)}, workers)
    assert scheduler.counters.cached_tokens == 0


def test_the_youngest_request_gives_up_its_pages_and_is_computed_again() -> None:
    scheduler, workers = machine(num_pages=6, page_size=4), Workers(4)
    clients = {n: Client(n, [n] * 6, 12) for n in (1, 2, 3)}
    run(scheduler, clients, workers)
    assert scheduler.counters.preemptions > 0
    for client in clients.values():
        assert client.tokens == answer(client.prompt, 12)
    assert scheduler.pool.num_used == 0
    assert clients[1].outputs[-1].finish_reason == "length"  # type: ignore[union-attr]


@pytest.mark.parametrize("num_pages", [4, 5, 6, 7])
def test_the_prompt_of_a_request_that_is_computed_again_is_scored_once(num_pages: int) -> None:
    scheduler, workers = machine(num_pages=num_pages, page_size=4, max_num_batched_tokens=4), Workers(4)
    prompts = [[*range(n, n + 7)] for n in (1, 2, 3)]
    clients = {n: Client(n, prompt, 8, prompt_logprobs=0) for n, prompt in enumerate(prompts)}
    run(scheduler, clients, workers)
    assert scheduler.counters.preemptions > 0
    for client in clients.values():
        scored = [s.chosen.token_id for o in client.outputs for s in o.prompt_logprobs]  # type: ignore[union-attr]
        assert scored == client.prompt[1:]


def test_an_answer_ends_with_an_end_token_and_later_tokens_of_a_step_are_dropped() -> None:
    prompt = [4, 2]
    tokens = answer(prompt, 8)
    end = tokens[4]
    client = Client(1, prompt, 8, frozenset([end]))
    scheduler, workers = machine(), Workers(4, num_drafts=3)
    run(scheduler, {1: client}, workers)
    assert client.tokens == tokens[: tokens.index(end) + 1]
    assert scheduler.pool.num_used == 0


def test_a_failed_request_ends_alone() -> None:
    scheduler = machine()
    one, two = Client(1, [1], 3), Client(2, [2], 3)
    scheduler.add(one.request)
    scheduler.add(two.request)
    batch = scheduler.schedule()
    assert batch is not None
    (failed, error), (going_on, _) = scheduler.commit(Done(batch.number, (Sampled(1, error="NaN"), Sampled(2, (5,)))))
    assert failed is one.request
    assert isinstance(error, RequestError)
    assert going_on is two.request
    assert scheduler.num_running == 1
    assert scheduler.pool.num_used == 1


def test_pages_of_a_cancelled_request_are_free_when_nothing_in_flight_writes_to_them() -> None:
    scheduler = machine(num_places=2, max_num_batched_tokens=4)
    client = Client(1, list(range(8)), 3)
    scheduler.add(client.request)
    batches = [scheduler.schedule(), scheduler.schedule()]
    scheduler.cancel(client.request)
    assert scheduler.pool.num_used == 2
    for batch in batches:
        assert batch is not None
        assert scheduler.commit(Done(batch.number)) == []
    assert scheduler.pool.num_used == 0
    assert scheduler.schedule() is None
    scheduler.add(Client(2, [1], 1).request)
    batch = scheduler.schedule()
    assert batch is not None
    assert batch.finished == (1,)


@pytest.mark.parametrize("seed", range(40))
def test_random_requests_have_the_tokens_of_each_alone(seed: int) -> None:
    """Arrivals, lengths, cancellations, drafts, places and cache sizes at random; few pages, so that there is preemption."""
    random = Random(seed)
    page_size, num_drafts = random.choice([1, 3, 4, 16]), random.choice([0, 0, 1, 3])
    longest = 40
    num_pages = -(-longest // page_size) * random.choice([1, 2, 5])
    scheduler = machine(
        num_pages,
        page_size,
        num_places=random.choice([1, 2, 4]),
        max_num_seqs=random.choice([2, 5, 64]),
        max_num_batched_tokens=random.choice([4, 16, 64]),
        enable_prefix_caching=random.random() < 0.7,
    )
    workers = Workers(page_size, num_drafts, seed)
    clients, cancelled = run_at_random(
        scheduler, workers, random, count=60, num_prefixes=3, longest=longest, num_ends=2
    )
    assert scheduler.num_running == scheduler.num_waiting == scheduler.num_in_flight == 0
    assert scheduler.pool.num_used == 0
    for number, client in clients.items():
        expected = answer(client.prompt, client.max_tokens)
        ends = [i for i, t in enumerate(expected) if t in client.request.ends]
        expected = expected[: ends[0] + 1] if ends else expected
        if number in cancelled:
            assert client.tokens == expected[: len(client.tokens)]
        else:
            assert client.tokens == expected


def test_ten_thousand_requests_leave_no_page_behind() -> None:
    random = Random(1)
    scheduler, workers = machine(num_pages=24, page_size=4, max_num_seqs=8, num_places=2), Workers(4)
    clients: dict[int, Client] = {}
    for number in range(1, 10_001):
        client = clients[number] = Client(
            number, [random.randrange(9) for _ in range(random.randint(1, 12))], random.randint(1, 4)
        )
        scheduler.add(client.request)
        if random.random() < 0.2:
            scheduler.cancel(clients[random.randint(max(1, number - 8), number)].request)
        while scheduler.num_waiting > 8:
            step(scheduler, workers, clients)
    while step(scheduler, workers, clients):
        pass
    assert scheduler.pool.num_used == scheduler.num_running == scheduler.num_waiting == 0
    assert all(c.is_over for c in clients.values())
