"""The log: a line for each request, as text or JSON, and nothing in it that a client could forge."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadmaster.errors import RunError
from loadmaster.server import log
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, serving

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) \S.*")


class Log:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    def lines(self) -> list[str]:
        return self.getvalue().split("\n")[:-1]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Log]:
    """What is written to the log after `configure_logging`, which is undone at the end."""
    loggers = [logging.getLogger(name) for name in ("loadmaster", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield Log(capsys)
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def ask(model_path: Path, settings: Settings | None = None, engine: FakeEngine | None = None, **headers: str) -> None:
    with serving(engine or FakeEngine(), model_path, settings) as url:
        body = {"prompt": "secret", "max_tokens": 3, "seed": 7}
        httpx.post(f"{url}/v1/completions", json=body, headers=headers)
        httpx.get(f"{url}/health")


def test_a_request_is_one_line_of_text(model_path: Path, written: Log) -> None:
    log.configure_logging("text", "INFO")
    ask(model_path, **{"X-Request-Id": "mine"})
    [line] = written.lines()
    assert LINE.fullmatch(line)
    fields = dict(pair.split("=") for pair in line.split(" request ")[1].split())
    seconds = {name: float(fields.pop(name)) for name in ("first_token_s", "per_token_s", "total_s")}
    assert fields == {
        "id": "mine",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/v1/completions",
        "status": "200",
        "outcome": "finished",
        "finish_reasons": "length",
        "model": "toy",
        "prompt_tokens": "6",
        "cached_tokens": "0",
        "output_tokens": "3",
    }
    assert 0 < seconds["first_token_s"] <= seconds["total_s"]


def test_a_request_is_one_json_object(model_path: Path, written: Log) -> None:
    log.configure_logging("json", "INFO")
    ask(model_path)
    [line] = map(json.loads, written.lines())
    assert (line["level"], line["message"], line["status"], line["finish_reasons"]) == (
        "info",
        "request",
        200,
        ["length"],
    )
    assert (line["output_tokens"], line["queue_s"]) == (3, None)


def test_quiet_endpoints_are_logged_at_debug(model_path: Path, written: Log) -> None:
    log.configure_logging("text", "DEBUG")
    ask(model_path)
    levels = {re.search(r"route=(\S+)", line)[1]: line.split()[2] for line in written.lines() if "route=" in line}  # type: ignore[index]
    assert levels == {"/v1/completions": "INFO", "/health": "DEBUG"}


def test_which_endpoints_are_quiet_can_be_chosen(model_path: Path, written: Log) -> None:
    log.configure_logging("text", "INFO")
    ask(model_path, Settings(quiet_endpoints=("/v1/completions",)))
    assert [re.search(r"route=(\S+)", line)[1] for line in written.lines()] == ["/health"]  # type: ignore[index]


def test_a_failure_is_an_error_in_the_log(model_path: Path, written: Log) -> None:
    log.configure_logging("text", "ERROR")
    ask(model_path, engine=FakeEngine(fails_after=1, error=RunError("rank 0 is gone")))
    assert any(line.split()[2] == "ERROR" and "outcome=failed" in line for line in written.lines())


def test_nothing_of_prompts_and_answers_is_logged_unless_it_is_asked_for(model_path: Path, written: Log) -> None:
    log.configure_logging("text", "DEBUG")
    ask(model_path)
    said = written.getvalue()
    assert "secret" not in said and "Hel" not in said and "seed" not in said


@pytest.mark.parametrize(("level", "prompts"), [("INFO", 0), ("DEBUG", 1)])
def test_requests_and_outputs_are_logged_on_demand(model_path: Path, written: Log, level: str, prompts: int) -> None:
    log.configure_logging("json", level)
    ask(model_path, Settings(log_requests=True, log_outputs=True, max_log_len=2), **{"X-Request-Id": "mine"})
    lines = [line for line in map(json.loads, written.lines()) if line.get("id") == "mine"]
    by_message = {line["message"]: line for line in lines}
    assert "seed=7" in by_message["parameters"]["params"]
    assert by_message["answer"]["text"] == "He"
    assert [line["prompt_token_ids"] for line in lines if line["message"] == "prompt"] == ["[115, 101]"] * prompts


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_client_cannot_forge_a_line(model_path: Path, written: Log, format: log.LogFormat) -> None:
    log.configure_logging(format, "INFO")
    with serving(FakeEngine(), model_path) as url:
        httpx.get(f"{url}/x%0a2026-01-01%2000:00:00.000%20INFO%20request%20outcome=finished%1b%5b2J")
    [line] = written.lines()
    assert "\x1b" not in line
    if format == "text":
        assert LINE.fullmatch(line)
        assert 'route="/x\\n2026' in line
    else:
        assert json.loads(line)["route"].startswith("/x\n2026")


def test_messages_and_tracebacks_keep_to_their_lines(written: Log) -> None:
    log.configure_logging("text", "INFO")
    try:
        raise ValueError("one\n2026-01-01 00:00:00.000 INFO two")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("a\nb\u2028c")
    first, *rest = written.lines()
    assert LINE.fullmatch(first) and "a\\nb\\u2028c" in first
    assert rest and all(line.startswith("    ") for line in rest)


def test_a_notice_is_printed_where_no_log_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    log.notice("ready: toy")
    log.notice("no descriptors", logging.WARNING)
    assert capsys.readouterr().err == "ready: toy\nwarning: no descriptors\n"
