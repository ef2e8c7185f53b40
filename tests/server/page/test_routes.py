"""The pages and /status as HTTP answers."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadmaster.errors import RunError
from loadmaster.server.settings import Settings
from loadmaster.server.snapshot import Status
from tests.server.fake import FakeEngine, eventually, serving

HTTP = httpx.Client(timeout=200)
PUBLIC = {"status", "uptime_s", "requires_key", "authorized"}


@pytest.fixture(scope="module")
def url(model_path: Path) -> Iterator[str]:
    with serving(FakeEngine(), model_path) as url:
        yield url


def given(url: str, key: str | None = None) -> dict[str, object]:
    """What /status says that is not null and not empty."""
    answer = HTTP.get(f"{url}/status", headers={} if key is None else {"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    Status.model_validate_json(answer.content, strict=True)
    return {name: value for name, value in answer.json().items() if value not in (None, [])}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_is_asked_for_again_only_if_it_changed(url: str, path: str) -> None:
    first = HTTP.get(url + path)
    assert (first.status_code, first.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert first.headers["Cache-Control"] == "no-cache"
    assert "'none'" in first.headers["Content-Security-Policy"]
    again = HTTP.get(url + path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert HTTP.head(url + path).status_code == 200


def test_redoc_is_not_there(url: str) -> None:
    assert HTTP.get(f"{url}/redoc").status_code == 404


def test_status_has_numbers_and_the_last_requests_and_no_prompt(url: str) -> None:
    secret = "the prompt is a secret"
    HTTP.post(f"{url}/v1/completions", json={"prompt": secret}, headers={"X-Request-Id": "order-7"})
    HTTP.post(f"{url}/v1/completions", json={"prompt": 7})
    eventually(lambda: len(HTTP.get(f"{url}/status").json()["recent"]) == 2)
    answer = HTTP.get(f"{url}/status")
    assert answer.headers["Cache-Control"] == "no-store"
    assert secret not in answer.text
    assert "Hello" not in answer.text
    status = answer.json()
    assert (status["status"], status["model"]["names"], status["loading"]) == ("ready", ["toy", "alias"], None)
    refused, finished = status["recent"]
    assert (refused["outcome"], refused["is_error"]) == ("refused", True)
    assert (finished["id"], finished["outcome"], finished["output_tokens"]) == ("order-7", "finished", 14)
    assert status["engine"]["counters"]["cached_tokens"] == 4
    assert [stage["busy_s"] for stage in status["engine"]["stages"]] == [3.0, 4.0]


def test_while_loading_status_has_the_bytes_of_each_rank(model_path: Path) -> None:
    with serving(FakeEngine(state="loading", loaded=(500, 1000)), model_path, ready=False) as url:
        status = given(url)
        assert HTTP.get(url).status_code == 200
        assert HTTP.get(f"{url}/docs").status_code == 200
    assert status["status"] == "loading"
    assert status["loading"] == {
        "loaded_bytes": 500,
        "total_bytes": 1000,
        "ranks": [{"rank": i, "stage": i, "loaded_bytes": 250, "total_bytes": 500} for i in range(2)],
    }
    assert "engine" not in status


def test_a_failure_is_told(model_path: Path) -> None:
    engine = FakeEngine()
    with serving(engine, model_path) as url:
        engine.fail(RunError("stage 1 has ended"))
        status = given(url)
        assert HTTP.get(url).status_code == 200
    assert status["status"] == "failed"
    assert "stage 1 has ended" in str(status["error"])


def test_without_the_key_status_has_the_state_alone(model_path: Path) -> None:
    with serving(FakeEngine(), model_path, Settings(api_keys=("one", "two"))) as url:
        assert HTTP.get(url).status_code == 200, "the page is the same for everyone"
        for key in (None, "wrong", "onetwo"):
            assert set(given(url, key)) == PUBLIC
        for key in ("one", "two"):
            assert {"model", "engine"} <= set(given(url, key))
