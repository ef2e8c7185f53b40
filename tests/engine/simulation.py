"""A pipeline of workers without processes: carries out batches late and in order, and checks what the scheduler promises.

Its model continues a sequence with a hash of all its tokens, so a token that is computed from the wrong cache is wrong.
"""

from __future__ import annotations

from collections import deque
from random import Random

from loadmaster.engine.request import Output, Request, Stream
from loadmaster.engine.scheduler import Scheduler
from loadmaster.errors import RequestError
from loadmaster.workers.batch import Batch, Done, PositionLogprobs, Sampled, Span, Start, TokenLogprob
from loadmaster.workers.sampling_params import SamplingParams

VOCAB = 50


def next_token(tokens: tuple[int, ...]) -> int:
    return hash(tokens) % VOCAB


def answer(prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tuple(tokens)))
    return tokens[len(prompt) :]


class Workers:
    """Keeps, for each slot of the cache, the tokens up to it: what attention would see there."""

    def __init__(self, page_size: int, num_drafts: int = 0, seed: int = 0) -> None:
        self.page_size = page_size
        self.slots: dict[int, tuple[int, ...]] = {}
        self.pages: dict[int, list[int]] = {}
        self.starts: dict[int, Start] = {}
        self.queue: deque[Batch] = deque()
        self.num_drafts = num_drafts
        self.random = Random(seed)
        self.last_number = 0

    def send(self, batch: Batch) -> None:
        assert batch.number == self.last_number + 1
        self.last_number = batch.number
        self.queue.append(batch)

    def next(self) -> Done:
        batch = self.queue.popleft()
        for request in batch.finished:
            self.pages.pop(request, None)
        assert len({s.request for s in batch.spans}) == len(batch.spans), "one span a request"
        sampled = [self.compute(span) for span in batch.spans]
        return Done(batch.number, tuple(s for s in sampled if s is not None))

    def compute(self, span: Span) -> Sampled | None:
        if span.start is not None:
            self.pages[span.request] = []
            self.starts[span.request] = span.start
        pages = self.pages[span.request]
        pages += span.new_pages
        seen = self.at(pages, span.first - 1) if span.first else ()
        prefixes = []
        for i, token in enumerate(span.token_ids):
            seen = (*seen, token)
            self.slots[self.slot(pages, span.first + i)] = seen
            prefixes.append(seen)
        scores = self.scores(span)
        if not span.num_logits:
            return Sampled(span.request, prompt_logprobs=scores) if scores else None
        tokens = []
        for prefix, draft in zip(prefixes[-span.num_logits :], (*span.drafts, None), strict=True):
            tokens.append(next_token(prefix))
            if tokens[-1] != draft:
                break
        drafts = []
        proposal = (*prefixes[-span.num_logits], *tokens)
        for _ in range(self.num_drafts):  # right three times in four
            drafts.append(next_token(proposal) if self.random.random() < 0.75 else 0)
            proposal = (*proposal, drafts[-1])
        return Sampled(span.request, tuple(tokens), tuple(drafts), prompt_logprobs=scores)

    def scores(self, span: Span) -> tuple[PositionLogprobs, ...]:
        start = self.starts[span.request]
        if start.params.prompt_logprobs is None:
            return ()
        predicted = start.token_ids[: start.num_prompt][span.first + 1 : span.stop + 1]
        return tuple(PositionLogprobs(TokenLogprob(token, 0.0, 1)) for token in predicted)

    def slot(self, pages: list[int], position: int) -> int:
        return pages[position // self.page_size] * self.page_size + position % self.page_size

    def at(self, pages: list[int], position: int) -> tuple[int, ...]:
        tokens = self.slots[self.slot(pages, position)]
        assert len(tokens) == position + 1
        return tokens


class Client:
    """A request and what it has been given."""

    def __init__(
        self,
        number: int,
        prompt: list[int],
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        prompt_logprobs: int | None = None,
    ) -> None:
        self.prompt, self.max_tokens = prompt, max_tokens
        self.outputs: list[Output | RequestError] = []
        stream = Stream(lambda: None, lambda event: None)
        params = SamplingParams(max_tokens=max_tokens, temperature=0, prompt_logprobs=prompt_logprobs)
        self.request = Request(number, prompt, params, max_tokens=max_tokens, ends=ends, stream=stream)

    @property
    def tokens(self) -> list[int]:
        return [t for o in self.outputs if isinstance(o, Output) for t in o.token_ids]

    @property
    def is_over(self) -> bool:
        return self.request.is_over


def step(scheduler: Scheduler, workers: Workers, clients: dict[int, Client]) -> bool:
    """Schedule as much as possible, then let the oldest batch finish. Return whether there was one."""
    while (batch := scheduler.schedule()) is not None:
        workers.send(batch)
    if not workers.queue:
        return False
    for request, output in scheduler.commit(workers.next()):
        clients[request.number].outputs.append(output)
    return True


def run_at_random(
    scheduler: Scheduler,
    workers: Workers,
    random: Random,
    *,
    count: int,
    num_prefixes: int,
    longest: int,
    num_ends: int = 0,
) -> tuple[dict[int, Client], set[int]]:
    """Let ``count`` requests arrive, be cancelled and be computed in a random order, until nothing is left.

    Prompts begin with a part of one of ``num_prefixes``; a request has at most ``longest`` tokens and ``num_ends`` end tokens.

    Returns:
        The clients by number, and the numbers of those that were cancelled.
    """
    clients: dict[int, Client] = {}
    cancelled: set[int] = set()
    prefixes = [[random.randrange(VOCAB) for _ in range(20)] for _ in range(num_prefixes)]
    pending = count
    while pending or step(scheduler, workers, clients):
        if pending and random.random() < 0.6:
            pending -= 1
            number = len(clients) + 1
            prompt = [*random.choice(prefixes)[: random.randrange(20)], random.randrange(VOCAB)]
            max_tokens = random.randint(1, longest - len(prompt))
            clients[number] = Client(number, prompt, max_tokens, frozenset(random.sample(range(VOCAB), num_ends)))
            scheduler.add(clients[number].request)
        if clients and random.random() < 0.1:
            number = random.choice(list(clients))
            if not clients[number].is_over:
                cancelled.add(number)
                scheduler.cancel(clients[number].request)
        if pending and random.random() < 0.5:
            step(scheduler, workers, clients)
    return clients, cancelled
