"""How many threads a rank computes with."""

from __future__ import annotations

import os

import pytest

from loadmaster.workers.crew import num_threads


@pytest.mark.parametrize(
    ("asked", "num_ranks", "expected"),
    [
        (None, 1, 8),
        (None, 3, 2),
        (None, 9, 1),
        ("1", 1, 1),
        ("3", 2, 3),
        ("5", 2, 4),
        ("2,1", 1, 2),
        ("0", 1, 8),
        ("many", 1, 8),
        ("", 1, 8),
    ],
)
def test_ranks_share_the_cores_and_take_no_more_than_openmp_may(
    asked: str | None, num_ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert num_threads(num_ranks) == expected
