"""The API with the real client, against a live server over an engine in this process."""

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loadmaster.errors import LoadError, RunError
from loadmaster.server.settings import Settings
from tests.server.fake import FakeEngine, client_of, eventually, serving

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


def test_models_are_listed_by_their_names(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [m.id for m in models] == ["toy", "alias"]
    assert models[0].model_extra is not None
    assert models[0].model_extra["max_model_len"] == 64


def test_completion(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.completions.create(model="toy", prompt="hi", max_tokens=40, seed=7, extra_body={"top_k": 5})
    assert done.object == "text_completion"
    assert done.choices[0].text == "Hello, world!"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 14, 16)
    prompt, params = engine.seen[-1]
    assert prompt == [*b"hi"]
    assert (params.seed, params.top_k, params.top_p) == (7, 5, 1.0)
    assert params.temperature == 0.5, "the model's own, from generation_config.json"


def test_max_tokens_is_sixteen_unless_said_and_ends_with_length(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.completions.create(model="alias", prompt=[1, 2, 3], max_tokens=5, temperature=0)
    assert (done.model, done.choices[0].text, done.choices[0].finish_reason) == ("toy", "Hello", "length")
    client.completions.create(model="toy", prompt="x")
    assert engine.seen[-1][1].max_tokens == 16


@pytest.mark.parametrize("prompts", [["a", "bc"], [[97], [98, 99]]])
def test_several_prompts_get_a_choice_each(client: openai.OpenAI, engine: FakeEngine, prompts: Any) -> None:
    done = client.completions.create(model="toy", prompt=prompts, max_tokens=5)
    assert [(c.index, c.text) for c in done.choices] == [(0, "Hello"), (1, "Hello")]
    assert [p for p, _ in engine.seen[-2:]] == [[97], [98, 99]]
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 10)


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"), [(", ", "Hello", 7), (["xyz", "world"], "Hello, ", 12), (["lo", "ell"], "H", 4)]
)
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    client: openai.OpenAI, stop: Any, text: str, num_tokens: int
) -> None:
    done = client.completions.create(model="toy", prompt="x", stop=stop, max_tokens=30)
    assert (done.choices[0].text, done.choices[0].finish_reason) == (text, "stop")
    assert done.usage is not None
    assert done.usage.completion_tokens == num_tokens
    parts = list(client.completions.create(model="toy", prompt="x", stop=stop, max_tokens=30, stream=True))
    assert "".join(p.choices[0].text for p in parts) == text
    assert parts[-1].choices[0].finish_reason == "stop"


def test_a_streamed_completion_comes_token_by_token_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    parts = list(
        client.completions.create(
            model="toy", prompt="hi", max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    *texts, end, usage = parts
    assert [p.choices[0].text for p in texts] == list("Hello, world!")
    assert all(p.usage is None and p.choices[0].finish_reason is None for p in texts)
    assert end.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 14
    assert len({p.id for p in parts}) == 1


def test_chat(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.chat.completions.create(
        model="toy",
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]},
        ],
        temperature=0,
    )
    assert done.object == "chat.completion"
    assert (done.choices[0].message.role, done.choices[0].message.content) == ("assistant", "Hello, world!")
    assert done.choices[0].finish_reason == "stop"
    prompt, params = engine.seen[-1]
    assert prompt == [261, *b"s", 257, 259, *b"u\nv", 257, 260]
    assert params.max_tokens is None, "as many as fit"


def test_streamed_chat(client: openai.OpenAI, engine: FakeEngine) -> None:
    parts = list(
        client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "u"}], max_completion_tokens=5, stream=True
        )
    )
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(p.choices[0].delta.content or "" for p in parts) == "Hello"
    assert parts[-1].choices[0].finish_reason == "length"
    assert {p.object for p in parts} == {"chat.completion.chunk"}
    assert engine.seen[-1][1].max_tokens == 5


def test_tokens_are_named_where_asked_for(client: openai.OpenAI) -> None:
    done = client.completions.create(model="toy", prompt="x", max_tokens=2, extra_body={"return_token_ids": True})
    expected = {"token_ids": [*b"He"], "prompt_token_ids": [*b"x"], "stop_reason": None}
    assert done.choices[0].model_extra == expected


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 8, "prompt": ["x"] * 129}, "n"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"best_of": 8, "prompt": ["x"] * 129}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"truncate_prompt_tokens": 65}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [262]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"stream_interval": 0, "stream": True}, "stream_interval"),
        ({"request_id": "a b"}, "request_id"),
        ({"priority": 1}, "priority"),
        ({"store": True}, "store"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"tools": [{}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"262": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [262]}, "stop_token_ids"),
        ({"temperature": "hot"}, "temperature"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": "x" * 64}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_is_not_supported_or_malformed_is_refused_by_name(
    client: openai.OpenAI, settings: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "toy", "prompt": "x"}, extra_body=settings)
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", param, 400)
    assert next(iter(settings)) in error["message"]


def test_values_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="toy",
        prompt="x",
        n=1,
        best_of=1,
        presence_penalty=0,
        echo=False,
        logit_bias={},
        extra_body={"logprobs": False},
    )
    assert done.choices[0].text == "Hello, world!"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'other' does not exist; served: toy, alias"):
        client.completions.create(model="other", prompt="x")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", "{", 400, "JSON"),
        ("completions", '{"model": "toy"}', 400, "prompt: Field required"),
        ("chat/completions", '{"messages": []}', 400, "messages"),
        ("chat/completions", '{"messages": [{"content": "x"}]}', 400, "no role"),
        ("chat/completions", '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', 400, "image_url"),
        ("nothing", "{}", 404, "Not Found"),
    ],
)
def test_every_error_is_worded_as_openai_does(url: str, path: str, body: str, status: int, words: str) -> None:
    got = httpx.post(f"{url}/v1/{path}", content=body, headers={"Content-Type": "application/json"}, timeout=200)
    assert got.status_code == status
    error = got.json()["error"]
    assert words in error["message"]
    assert error["code"] == status


def test_requests_run_at_the_same_time(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.delay_s = 0.01
    answers: list[str] = []

    def ask() -> None:
        answers.append(client.completions.create(model="toy", prompt="x").choices[0].text)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    engine.delay_s = 0
    assert answers == ["Hello, world!"] * 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(
    client: openai.OpenAI, url: str, engine: FakeEngine, stream: bool
) -> None:
    engine.endless, before = True, engine.given_up
    request = httpx.Request("POST", f"{url}/v1/completions", json={"model": "toy", "prompt": "x", "stream": stream})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    try:
        with socket.create_connection((request.url.host, request.url.port), timeout=200) as connection:
            connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
            eventually(lambda: engine.running == 1)
            if stream:
                assert connection.recv(4) == b"HTTP"
        eventually(lambda: engine.given_up == before + 1 and engine.running == 0)
    finally:
        engine.endless = False
    assert client.completions.create(model="toy", prompt="x").choices[0].text == "Hello, world!"


def test_text_is_cut_between_characters_when_streamed(model_path: Path) -> None:
    with serving(FakeEngine("für 5 €".encode()), model_path) as url, client_of(url) as client:
        parts = client.completions.create(model="toy", prompt="x", stream=True)
        assert [p.choices[0].text for p in parts] == [*"für 5 €", ""]


def test_a_model_without_tokenizer_takes_and_gives_token_ids(tmp_path: Path) -> None:
    with serving(FakeEngine(), tmp_path) as url, client_of(url) as client:
        done = client.completions.create(model="toy", prompt=[1], max_tokens=2)
        assert done.choices[0].text == ""
        assert done.choices[0].model_extra is not None
        assert done.choices[0].model_extra["token_ids"] == [*b"He"]
        for refused in ({"prompt": "x"}, {"prompt": [1], "stop": "a"}):
            with pytest.raises(openai.BadRequestError, match="tokenizer"):
                client.completions.create(**{"model": "toy", **refused})  # type: ignore[call-overload]


def test_while_the_model_loads_the_port_answers_with_progress(model_path: Path) -> None:
    engine = FakeEngine(state="loading", loaded=(250, 1000))
    with serving(engine, model_path, ready=False) as url:
        health = httpx.get(f"{url}/health", timeout=200)
        assert health.status_code == 503
        assert (health.json()["status"], health.json()["loaded_bytes"], health.json()["total_bytes"]) == (
            "loading",
            250,
            1000,
        )
        models = httpx.get(f"{url}/v1/models", timeout=200)
        assert models.status_code == 503
        assert models.json()["error"] == {
            "message": "the model is loading: 250 of 1,000 bytes",
            "type": "ServiceUnavailable",
            "param": None,
            "code": 503,
        }
        assert int(models.headers["Retry-After"]) > 0
        engine.fail(LoadError("shard 7 changed"))
        health = httpx.get(f"{url}/health", timeout=200)
        assert health.status_code == 503
        assert health.json()["error"]["message"] == "shard 7 changed"


def test_an_engine_that_fails_answers_and_is_unhealthy_from_then_on(model_path: Path) -> None:
    engine = FakeEngine(fails_after=2, error=RunError("stage 1 of 2 was killed by SIGKILL"))
    with serving(engine, model_path) as url, client_of(url) as client:
        assert httpx.get(f"{url}/health", timeout=200).status_code == 200
        with pytest.raises(openai.APIError, match="killed by SIGKILL"):
            list(client.completions.create(model="toy", prompt="x", stream=True))
        with pytest.raises(openai.InternalServerError, match="killed by SIGKILL"):
            client.completions.create(model="toy", prompt="x")
        assert httpx.get(f"{url}/health", timeout=200).status_code == 503


def test_a_key_opens_what_lies_under_v1(model_path: Path) -> None:
    with serving(FakeEngine(), model_path, Settings(api_keys=("other", "secret"))) as url:
        assert httpx.get(f"{url}/health", timeout=200).status_code == 200
        with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with client_of(url, "secret") as client:
            assert client.models.list().data[0].id == "toy"


def test_the_models_own_end_can_be_ignored(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.completions.create(model="toy", prompt="x", max_tokens=14, extra_body={"ignore_eos": True})
    assert done.choices[0].finish_reason == "length"
    assert engine.stop_token_ids(engine.seen[-1][1]) == frozenset()


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"n": "x" * 10**6}, "n"),
        ({"stop": ["x" * 10**6]}, "stop"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"stop_token_ids": [1] * 1000}, "stop_token_ids"),
        ({"stop": [1] * 1000}, "stop"),
        ({"prompt": [1.5] * 10**5}, "prompt"),
        ({"prompt": ["x"] * 2000}, "prompt"),
        ({"prompt": "x" * 10**6}, None),
        ({"prompt": "a\ud800b"}, "prompt"),
        ({"stop": ["a", "\udfff"]}, "stop"),
        ({"user": {"name": ["\ud800"]}}, "user"),
        ({"\ud800": 1}, None),
        ({"x" * 10**6: "\ud800"}, "x"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**4000}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"top_k": 2**64}, "top_k"),
        ({"top_p": True}, "top_p"),
        ({"n": True}, "n"),
        ({"n": 10**4000}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options"),
        ({"prompt": [10**400]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logit_bias": {"x" * 10**6: 1}}, "logit_bias"),
    ],
    ids=lambda value: repr(value)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_hostile_values_are_refused_in_few_words(url: str, settings: dict[str, Any], param: str | None) -> None:
    got = httpx.post(
        f"{url}/v1/completions", content=json.dumps({"prompt": "x", **settings}), headers=JSON, timeout=200
    )
    assert got.status_code == 400, got.text[:500]
    error = got.json()["error"]
    assert (error["param"] or "")[:1] == (param or "")[:1]
    assert len(got.content) < 1500


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"prompt": "x", "temperature": NaN}', 400, "NaN is not a number in JSON"),
        (b'{"prompt": "x", "temperature": -Infinity}', 400, "-Infinity is not a number"),
        (b'{"prompt": "x", "temperature": 1e999}', 400, "temperature: Input should be a finite number"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, "more than 4300 digits"),
        (b'{"prompt": "x", "user": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "user is nested more than 100 levels deep"),
        (b'{"prompt": ' + b"[" * 90000 + b"]" * 90000 + b"}", 400, "nested more than 100 levels deep"),
        (b'{"prompt": [' + b"[]," * 200000 + b"[]]}", 400, "more than 100,000 lists"),
        (b'{"prompt": [' + b"1," * 2000001 + b"1]}", 400, "more than 2,000,000 values"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8, at byte 12"),
        (b'{"prompt": "\xed\xa0\x80"}', 400, "not UTF-8"),
        (b"[1]", 400, "valid dictionary"),
        (b"", 400, "JSON decode error"),
        (b'{"prompt": "' + b"x" * (16 * 2**20) + b'"}', 413, "at most 16,777,216"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes) else None,
)
def test_hostile_bodies_are_refused_in_few_words(url: str, body: bytes, status: int, words: str) -> None:
    got = httpx.post(f"{url}/v1/completions", content=body, headers=JSON, timeout=200)
    assert (got.status_code, words in got.json()["error"]["message"]) == (status, True), got.text[:500]
    assert len(got.content) < 1000


def test_brackets_in_text_are_text(url: str) -> None:
    got = httpx.post(f"{url}/v1/completions", json={"prompt": '[{"a":' * 60000}, timeout=200)
    assert "characters" in got.json()["error"]["message"], "it is too long for the model, and that is all"


def test_a_body_that_is_not_said_to_be_json_is_refused(url: str) -> None:
    got = httpx.post(f"{url}/v1/completions", content=b"{}", headers={"Content-Type": "text/" + "x" * 10000})
    assert got.status_code == 415
    assert len(got.content) < 500


@pytest.mark.parametrize(
    "where", [{"model": "m" * 10**6}, {"messages": [{"role": "user", "content": {"type": "t" * 10**6}}]}]
)
def test_what_a_client_wrote_is_not_repeated_at_length(url: str, where: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **where}
    got = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=200)
    assert got.status_code in (400, 404)
    assert len(got.content) < 600


@pytest.mark.parametrize(
    "messages",
    [
        None, "x", {}, [1], ["x"], [[]], [None], [{"role": 1}], [{"role": "user", "content": 1}],
        [{"role": "user", "content": ["x"]}], [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "x", "tool_calls": [{"\udc00": 1}]}],
    ],
    ids=repr,
)  # fmt: skip
def test_messages_of_wrong_types_are_refused_by_name(url: str, messages: Any) -> None:
    body = json.dumps({"messages": messages})
    got = httpx.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
    assert (got.status_code, got.json()["error"]["param"]) == (400, "messages"), got.text


@pytest.mark.parametrize(
    "name", ["chat_template", "padding", "truncation", "tokenizer_kwargs", "return_tensors", "max_length", "tokenize"]
)
def test_chat_template_kwargs_are_variables_of_the_template_and_nothing_else(url: str, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {name: "max_length"}}
    got = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=200)
    assert got.status_code == 400
    assert f"'{name}' is not a variable of the model's chat template" in got.json()["error"]["message"]


def test_a_template_without_end_is_a_clear_error_and_holds_nobody_up(
    model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in model_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": loop}))
    with serving(FakeEngine(), tmp_path) as url, client_of(url) as client:
        answers: list[httpx.Response] = []
        body = {"messages": [{"role": "user", "content": "x"}]}

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=200))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for t in threads:
            t.start()
        assert client.completions.create(model="toy", prompt="x").choices[0].text == "Hello, world!"
        while any(t.is_alive() for t in threads):
            assert httpx.get(f"{url}/health", timeout=200).status_code == 200
            time.sleep(0.05)
        assert [a.status_code for a in answers] == [500] * 3
        message = "cannot use the model's chat template: even on one short message it takes more than 2 s"
        assert message in answers[0].text
    assert capfd.readouterr().err.count(f"warning: /v1/chat/completions: {message}") == 1
