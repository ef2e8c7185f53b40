"""Messages survive; anything else is not decoded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from loadmaster.errors import ConfigError, LoadError, RequestError
from loadmaster.workers import SamplingParams
from loadmaster.workers.batch import Batch, Done, PositionLogprobs, Sampled, Span, Start, TokenLogprob
from loadmaster.workers.encoding import dumps, loads
from loadmaster.workers.messages import Ended, Failed, Job, Place, Prepare, Ready, Usage

SCORES = (PositionLogprobs(TokenLogprob(5, -0.5, 1), (TokenLogprob(6, -0.25, 2),)),)


@pytest.mark.parametrize(
    "message",
    [
        Batch(7, (Span(1, 0, (1, 2, 3), (4,), 1, Start(SamplingParams(stop_token_ids=(3,)), (1, 2, 3), 3)),), (9,)),
        Done(7, (Sampled(1, (5,), (6, 7), SCORES, SCORES),)),
        Job(Place(1, 2), 1, "a:b", b"plan", peers=(None, 3)),
        Ready(3, 1 << 40),
        Usage(1, 0, 0.5, 0.25),
        Prepare(1, "start: /a/"),
        Ended("why"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_messages_survive(message: object) -> None:
    assert loads(dumps(message)) == message


@pytest.mark.parametrize("error", [LoadError("no", hint="yes"), ConfigError("a", code="b"), RequestError("n")])
def test_errors_survive_with_hint_and_notes(error: LoadError) -> None:
    error.add_note("a traceback")
    copy = loads(dumps(Failed(error, is_cause=True))).error
    assert (type(copy), str(copy), copy.__notes__) == (type(error), str(error), ["a traceback"])


class Payload:
    """Makes a file when it is decoded by `pickle.loads`."""

    def __init__(self, call: object, *args: object) -> None:
        self._reduced = call, args

    def __reduce__(self) -> tuple[object, ...]:
        return self._reduced


@pytest.mark.parametrize("call", [Path.touch, os.system, eval, getattr, SamplingParams.__init__])
def test_nothing_else_is_decoded(call: object, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for argument in (mark, f"touch {mark}"):
        with pytest.raises(ValueError, match="not part of any message"):
            loads(pickle.dumps(Done(1, (Payload(call, argument),))))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a message"):
        loads(b"\x80\x05")
    assert not mark.exists()
