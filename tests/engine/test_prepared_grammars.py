"""When requests wait for their grammar, and which grammars the workers keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest

from loadmaster.engine.prepared_grammars import MAX_KEPT, PreparedGrammars
from loadmaster.engine.request import Request, Stream
from loadmaster.workers.messages import Drop, Prepare, Prepared
from loadmaster.workers.sampling_params import SamplingParams
from loadmaster.workers.structured_outputs import Grammar

NUMBERS = count(1)


def request(text: str | None, after: tuple[int, ...] = ()) -> Request:
    params = SamplingParams(structured_outputs=None if text is None else Grammar(text, after))
    stream = Stream(lambda: None, lambda event: None)
    return Request(next(NUMBERS), [1], params, max_tokens=1, ends=frozenset(), stream=stream)


@dataclass
class Two:
    """Two ranks, which do nothing on their own."""

    sent: list[Prepare | Drop] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grammars = PreparedGrammars(2, self.sent.append)

    def prepare(self, text: str) -> Request:
        """Return a request whose grammar both ranks have compiled."""
        first = request(text)
        if not self.grammars.add(first):
            number = max(message.number for message in self.sent if isinstance(message, Prepare))
            self.grammars.take(Prepared(number))
            assert self.grammars.take(Prepared(number)) == [first]
        return first


@pytest.fixture
def two() -> Two:
    return Two()


def test_a_request_without_a_grammar_never_waits(two: Two) -> None:
    assert two.grammars.add(request(None))
    assert two.sent == []


def test_a_request_waits_for_every_rank_and_the_next_with_its_grammar_for_none(two: Two) -> None:
    first = request("a")
    assert not two.grammars.add(first)
    assert two.sent == [Prepare(1, "a")]
    assert two.grammars.take(Prepared(1)) == []
    assert two.grammars.held == [first]
    assert two.grammars.take(Prepared(1)) == [first]
    assert two.grammars.num_held == 0
    assert two.grammars.add(request("a", after=(7,)))
    assert len(two.sent) == 1


def test_requests_with_one_grammar_wait_for_it_together(two: Two) -> None:
    first, other, second = request("a"), request("b"), request("a")
    assert [two.grammars.add(r) for r in (first, other, second)] == [False] * 3
    assert two.sent == [Prepare(1, "a"), Prepare(2, "b")]
    two.grammars.take(Prepared(1))
    assert two.grammars.take(Prepared(1)) == [first, second]
    assert two.grammars.held == [other]


def test_a_request_that_is_cancelled_while_it_waits_is_over(two: Two) -> None:
    first, second, free = request("a"), request("a"), request(None)
    for each in (first, second, free):
        two.grammars.add(each)
    assert two.grammars.cancel(first)
    assert first.is_over
    assert not two.grammars.cancel(first)
    assert not two.grammars.cancel(free)
    assert not free.is_over
    two.grammars.take(Prepared(1))
    assert two.grammars.take(Prepared(1)) == [second]


def test_an_error_of_one_rank_ends_the_wait_and_the_next_request_tries_again(two: Two) -> None:
    first, second = request("a"), request("b")
    two.grammars.add(first)
    two.grammars.add(second)
    assert two.grammars.take(Prepared(1, "no")) == [first]
    assert two.grammars.held == [second]
    assert two.sent[2:] == [Drop("a")]
    assert not two.grammars.add(request("a"))
    assert two.sent[3:] == [Prepare(3, "a")]
    assert two.grammars.take(Prepared(1, "no")) == [], "the other rank's answer to the first attempt"
    assert two.grammars.num_held == 2


def test_the_grammars_that_were_used_last_are_kept(two: Two) -> None:
    for i in range(MAX_KEPT):
        two.prepare(f"{i}").is_over = True
    two.prepare("0").is_over = True
    two.sent.clear()
    two.grammars.add(request("new"))
    assert [type(m) for m in two.sent] == [Prepare, Drop]
    assert two.sent[1] == Drop("1")


def test_a_grammar_is_kept_while_a_request_needs_it(two: Two) -> None:
    requests = [two.prepare(f"{i}") for i in range(MAX_KEPT + 5)]
    assert not any(isinstance(message, Drop) for message in two.sent)
    requests[3].is_over = requests[4].is_over = True
    two.grammars.add(request("new"))
    assert two.sent[-2:] == [Drop("3"), Drop("4")]


def test_a_grammar_that_is_dropped_while_it_is_compiled_may_be_answered(two: Two) -> None:
    first = request("a")
    two.grammars.add(first)
    two.grammars.cancel(first)
    for i in range(MAX_KEPT):
        two.prepare(f"{i}")
    assert Drop("a") in two.sent
    assert two.grammars.take(Prepared(1)) == []
