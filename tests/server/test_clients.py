"""Many clients of a real engine: they leave in the middle, or their engine is lost; and what a real model answers."""

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from tests.conftest import Tiny
from tests.server.fake import client_of, eventually, serving
from tests.workers.processes import newest_worker
from tests.workers.toy import BUILDER, ToyPlan, continuation

pytestmark = pytest.mark.usefixtures("forked_workers")
ENDLESS = {"max_tokens": 5000, "temperature": 0, "ignore_eos": True}


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


def test_a_client_that_leaves_during_its_prompt_frees_it_and_the_next_is_answered() -> None:
    """The prompt takes 1500 steps of 3 tokens. Most of them are never computed."""
    capacity = Capacity(max_num_seqs=8, block_size=4, max_num_batched_tokens=3)
    plan = cast(Any, ToyPlan(2, max_model_len=5000))
    with Engine(plan, builder=BUILDER, capacity=capacity) as engine, serving(engine, Path("/nowhere")) as url:
        body = json.dumps({"prompt": [1] * 4500, "max_tokens": 1})
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}\r\n\r\n{body}".encode())
            eventually(lambda: engine.statistics().num_used_pages > 0)
        eventually(lambda: engine.statistics().num_running == engine.statistics().num_used_pages == 0)
        assert engine.statistics().most_used_pages < 4500 // 4
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
        newest_worker().kill()
        for i, request in enumerate(requests):
            status, text = request.result(60)
            assert status == (200 if i % 2 == 0 else 500)
            assert text.count("was killed by SIGKILL") == 1
        assert httpx.get(f"{url}/health", timeout=200).status_code == 503
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [3]}, timeout=200).status_code == 503


@pytest.fixture(scope="module")
def reference(tiny: Tiny) -> Any:
    """The same checkpoint, as transformers runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype="float32").eval()


@pytest.fixture(scope="module")
def llama(tiny: Tiny, forked_workers: None) -> Iterator[str]:
    path = tiny("llama")
    layout = ParallelLayout(pipeline_parallel_size=2)
    plan = prove(build_plan(open_checkpoint(path), layout, dtype="F32")).require_proven()
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


def greedy(url: str, prompt: list[int], **fields: Any) -> list[int]:
    body = {
        "prompt": prompt,
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=200).json()
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


def transformers_greedy(reference: Any, prompt: list[int], **settings: Any) -> list[int]:
    import torch

    ids = reference.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, **settings
    )
    answer: list[int] = ids[0, len(prompt) :].tolist()
    return answer


def test_bad_words_and_allowed_tokens_give_the_answers_of_transformers(llama: str, reference: Any) -> None:
    prompt = [*b"Hello, wor"]
    plain = greedy(llama, prompt)
    assert plain == transformers_greedy(reference, prompt)
    allowed = [t for t in range(32, 127) if t != plain[0]]
    expected = transformers_greedy(reference, prompt, prefix_allowed_tokens_fn=lambda _, __: allowed)
    assert greedy(llama, prompt, allowed_token_ids=allowed) == expected != plain
    # words of two tokens that the answer has: without the second after the first
    words = [bytes(expected[i : i + 2]).decode() for i in (0, 3)]
    banned = greedy(llama, prompt, allowed_token_ids=allowed, bad_words=words)
    assert banned == transformers_greedy(
        reference,
        prompt,
        prefix_allowed_tokens_fn=lambda _, __: allowed,
        bad_words_ids=[[*word.encode()] for word in words],
    )
    assert not any(word.encode() in bytes(banned) for word in words)


def test_the_best_of_several_answers_has_the_highest_log_probability_per_token(llama: str) -> None:
    settings: dict[str, Any] = {
        "model": "toy",
        "prompt": "Hello",
        "max_tokens": 5,
        "seed": 3,
        "temperature": 1.5,
        "logprobs": 0,
    }
    with client_of(llama) as client:
        every = client.completions.create(**settings, n=6).choices
        best = client.completions.create(**settings, n=2, best_of=6).choices

        def mean(choice: Any) -> float:
            values = choice.logprobs.token_logprobs
            return float(sum(values) / len(values))

        expected = sorted(every, key=mean, reverse=True)[:2]
        assert [c.text for c in best] == [c.text for c in expected]
        assert mean(best[0]) > mean(best[1])


def test_the_asynchronous_client_has_the_same_answers(llama: str) -> None:
    settings: dict[str, Any] = {"model": "toy", "temperature": 0.8, "seed": 5, "max_tokens": 6}
    prompt: dict[str, Any] = {**settings, "prompt": ["a", "bc"], "n": 2, "logprobs": 1, "echo": True, "stop": ["q"]}
    chat: dict[str, Any] = {**settings, "messages": [{"role": "user", "content": "u"}], "logprobs": True}
    extra = {"return_token_ids": True, "top_k": 20, "min_p": 0.01, "bad_words": ["e"], "min_tokens": 2}

    async def ask() -> tuple[Any, Any, str]:
        async with openai.AsyncOpenAI(base_url=f"{llama}/v1", api_key="none", max_retries=0, timeout=200) as client:
            answers = asyncio.gather(
                client.completions.create(**prompt, extra_body=extra),
                client.chat.completions.create(**chat, extra_body=extra),
            )
            stream = await client.chat.completions.create(**chat, extra_body=extra, stream=True)
            text = "".join([p.choices[0].delta.content or "" async for p in stream])
            return *(await answers), text

    done, said, streamed = asyncio.run(ask())
    with client_of(llama) as client:
        again = client.completions.create(**prompt, extra_body=extra)
        assert [(c.text, c.model_extra) for c in done.choices] == [(c.text, c.model_extra) for c in again.choices]
        message = client.chat.completions.create(**chat, extra_body=extra).choices[0].message
        assert said.choices[0].message.content == message.content == streamed
