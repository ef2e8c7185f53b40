"""Work in a process of its own: answers, crashes, hangs."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from loadmaster.audit.isolate import Lost, Running, WorkError


def test_an_answer_comes_back_however_long_and_output_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, Any]:
        os.write(1, b"noise")
        return {"pid": os.getpid(), "long": "x" * 2**20}

    answer = Running(work, 300).result()
    assert isinstance(answer, dict)
    assert answer["pid"] != os.getpid()
    assert len(answer["long"]) == 2**20
    assert capfd.readouterr().out == ""


def test_a_crash_is_named_by_its_signal_or_code() -> None:
    assert Running(lambda: os.kill(os.getpid(), signal.SIGKILL), 300).result() == Lost(hung=False, signal="SIGKILL")  # type: ignore[arg-type,return-value]
    assert Running(lambda: os._exit(7), 300).result() == Lost(hung=False, signal="exit code 7")


def test_what_does_not_end_is_ended_with_all_that_it_began() -> None:
    begin = time.monotonic()
    assert Running(lambda: time.sleep(600), 0.5).result() == Lost(hung=True)  # type: ignore[arg-type,return-value]
    assert time.monotonic() - begin < 300


def test_a_fault_of_the_work_itself_is_an_error_here() -> None:
    with pytest.raises(WorkError, match="ZeroDivisionError"):
        Running(lambda: {"a": 1 // 0}, 300).result()


def test_two_can_run_at_the_same_time() -> None:
    begun = [Running(lambda i=i: {"number": i}, 300) for i in (0, 1)]  # type: ignore[misc]
    assert [b.result() for b in begun] == [{"number": 0}, {"number": 1}]
