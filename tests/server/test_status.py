"""Readiness and liveness are two questions, with an answer in every state of the server."""

from pathlib import Path

import httpx
import pytest

from loadmaster.engine import Loading, RankProgress
from loadmaster.errors import RunError
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, serving


def test_a_server_that_loads_is_alive_and_says_how_far_each_rank_is(model_path: Path) -> None:
    engine = FakeEngine(state="loading", loaded=(200, 1000))
    with serving(engine, model_path, Settings(api_keys=("k",)), ready=False) as url:
        health, live = httpx.get(f"{url}/health"), httpx.get(f"{url}/live")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    assert health.status_code == 503
    assert health.json() == {
        "status": "loading",
        "loaded_bytes": 200,
        "total_bytes": 1000,
        "fraction": 0.2,
        "bytes_per_s": 100,
        "seconds_left": 8,
        "ranks": [{"rank": r, "stage": r, "loaded_bytes": 100, "total_bytes": 500} for r in range(2)],
    }


def test_a_server_whose_engine_failed_is_neither_ready_nor_alive(model_path: Path) -> None:
    engine = FakeEngine()
    with serving(engine, model_path) as url:
        assert [httpx.get(url + path).status_code for path in ("/health", "/live")] == [200, 200]
        engine.fail(RunError("rank 0 is gone"))
        answers = [httpx.get(url + path) for path in ("/health", "/live")]
    assert [(a.status_code, a.json()["status"]) for a in answers] == [(503, "failed")] * 2


@pytest.mark.parametrize(
    ("done", "seconds", "expected"),
    [(0, 0.0, "0.0 of 12.0 GB, 0.00 GB/s"), (3 * 10**9, 2.0, "3.0 of 12.0 GB, 1.50 GB/s, 6 s left")],
)
def test_the_log_says_how_far_loading_is(done: int, seconds: float, expected: str) -> None:
    assert str(Loading((RankProgress(0, 0, done, 12 * 10**9),), seconds)) == expected
