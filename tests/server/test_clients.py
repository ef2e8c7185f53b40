"""Many clients of a real engine: they leave in the middle, or their engine is lost; and what a real model answers."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from tests.conftest import Tiny
from tests.server.fake import client_of, eventually, serving
from tests.workers.toy import BUILDER, ToyPlan, continuation

ENDLESS = {"max_tokens": 10**6, "temperature": 0, "ignore_eos": True}


@contextmanager
def toy() -> Iterator[tuple[Engine, str]]:
    """Yield an engine over a model that answers with thousands of tokens, and its server's address."""
    capacity = Capacity(max_num_seqs=8, block_size=4)
    plan = cast(Any, ToyPlan(2, max_model_len=5000))
    with Engine(plan, builder=BUILDER, capacity=capacity) as engine, serving(engine, Path("/nowhere")) as url:
        yield engine, url


def test_pages_of_clients_that_leave_are_free_again() -> None:
    chance = random.Random(7)
    with toy() as (engine, url):

        def visit(number: int, num_events: int) -> None:
            body = {**ENDLESS, "prompt": [[number] * 9, [1]], "n": 1 + number % 2, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=200) as response:
                lines = response.iter_lines()
                for _ in range(num_events):
                    next(lines)

        with ThreadPoolExecutor(10) as clients:
            visits = [clients.submit(visit, i, chance.randrange(40)) for i in range(30)]
        for one in visits:
            one.result()

        def nothing_runs() -> bool:
            now = engine.statistics()
            return now.num_running == now.num_waiting == now.num_used_pages == 0

        eventually(nothing_runs)
        assert engine.statistics().most_used_pages > 0
        answer = httpx.post(
            f"{url}/v1/completions", json={"prompt": [3], "max_tokens": 2, "temperature": 0}, timeout=200
        )
        assert answer.json()["choices"][0]["token_ids"] == continuation([3], 2, 2)


def test_every_request_ends_with_the_error_of_a_lost_stage() -> None:
    with toy() as (engine, url), ThreadPoolExecutor(6) as clients:

        def ask(number: int) -> tuple[int, str]:
            body = {**ENDLESS, "prompt": [number], "stream": number % 2 == 0}
            response = httpx.post(f"{url}/v1/completions", json=body, timeout=200)
            return response.status_code, response.text

        requests = [clients.submit(ask, i) for i in range(6)]
        eventually(lambda: engine.statistics().num_running == 6)
        psutil.Process().children()[-1].kill()
        for i, request in enumerate(requests):
            status, text = request.result(60)
            assert status == (200 if i % 2 == 0 else 500)
            assert text.count("was killed by SIGKILL") == 1
        assert httpx.get(f"{url}/health", timeout=200).status_code == 503
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [3]}, timeout=200).status_code == 503


@pytest.fixture(scope="module")
def llama(tiny: Tiny) -> Iterator[str]:
    path = tiny("llama")
    plan = prove(build_plan(open_checkpoint(path), ParallelLayout(pipeline_parallel_size=2))).require_proven()
    with Engine(plan, max_model_len=64, capacity=Capacity(block_size=4)) as engine, serving(engine, path) as url:
        yield url


def test_what_a_model_answers_has_the_log_probabilities_of_its_own_prompt(llama: str) -> None:
    """An answer, sent back as a prompt, is scored with the same log probabilities."""
    with client_of(llama) as client:
        given: dict[str, Any] = {"model": "toy", "logprobs": 3, "seed": 5, "temperature": 0.7}
        returned = {"return_token_ids": True, "ignore_eos": True}
        done = client.completions.create(prompt="Hello", n=2, max_tokens=6, extra_body=returned, **given)
        assert [c.index for c in done.choices] == [0, 1]
        assert done.choices[0].text != done.choices[1].text
        for choice in done.choices:
            assert choice.logprobs is not None and choice.model_extra is not None
            ids = [*choice.model_extra["prompt_token_ids"], *choice.model_extra["token_ids"]]
            again = client.completions.create(prompt=ids, echo=True, max_tokens=0, **given).choices[0]
            assert again.logprobs is not None
            assert again.logprobs.tokens is not None
            assert again.logprobs.tokens[-6:] == choice.logprobs.tokens
            assert (again.logprobs.token_logprobs or [])[-6:] == pytest.approx(choice.logprobs.token_logprobs, abs=0.05)


def test_streamed_answers_are_those_of_a_whole_response(llama: str) -> None:
    body = {"prompt": ["a", "bc"], "n": 2, "max_tokens": 5, "seed": 3, "return_token_ids": True, "ignore_eos": True}
    whole = httpx.post(f"{llama}/v1/completions", json=body, timeout=200).json()["choices"]
    streamed: list[list[int]] = [[] for _ in range(4)]
    with httpx.stream("POST", f"{llama}/v1/completions", json={**body, "stream": True}, timeout=200) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                streamed[choice["index"]] += choice["token_ids"]
    assert streamed == [choice["token_ids"] for choice in whole]
    assert len({tuple(ids) for ids in streamed}) == 4
