"""`/v1/responses` with the real client: whole answers, and events as it parses them."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import ResponseCompletedEvent, ResponseErrorEvent, ResponseTextDeltaEvent

from loadmaster.errors import RunError
from tests.server.fake import FakeEngine, client_of, serving

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def test_a_text_is_answered(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.responses.create(model="alias", input="u", instructions="s", temperature=0.25, metadata={"a": "b"})
    assert (done.object, done.status, done.model, done.output_text) == ("response", "completed", "toy", "hey")
    assert done.id.startswith("resp_")
    assert (done.temperature, done.top_p, done.metadata, done.instructions) == (0.25, 1.0, {"a": "b"}, "s")
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (7, 4, 11)
    assert done.usage.input_tokens_details.cached_tokens == 0
    assert engine.seen[-1][0] == [261, *b"s", 257, 259, *b"u", 257, 260]
    assert engine.seen[-1][1].max_tokens is None


def test_a_conversation_is_answered(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = client.responses.create(model="toy", input=[{"role": "user", "content": "u"}])
    again: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
        *[item.model_dump() for item in first.output],
        {"role": "user", "content": "v", "type": "message"},
    ]
    client.responses.create(model="toy", input=again)
    assert engine.seen[-1][0] == [259, *b"u", 257, 260, *b"hey", 257, 259, *b"v", 257, 260]


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    done = client.responses.create(model="toy", input="u", max_output_tokens=2)
    assert (done.status, done.output_text) == ("incomplete", "he")
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    last = list(client.responses.create(model="toy", input="u", max_output_tokens=2, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_events_are_those_of_the_client(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="toy", input="u", stream=True))
    assert [e.type for e in events] == EVENTS
    assert [e.sequence_number for e in events] == list(range(len(EVENTS)))
    assert "".join(e.delta for e in events if isinstance(e, ResponseTextDeltaEvent)) == "hey"
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == "hey"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 4


def test_the_clients_own_stream_puts_the_answer_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="toy", input="u") as stream:
        assert [e.type for e in stream] == EVENTS
        assert stream.get_final_response().output_text == "hey"


def test_the_asynchronous_client(url: str) -> None:
    async def ask() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            done = await client.responses.create(model="toy", input="u")
            stream = await client.responses.create(model="toy", input="u", stream=True)
            return done.output_text, [e.type async for e in stream]

    assert asyncio.run(ask()) == ("hey", EVENTS)


def test_each_event_has_its_name_and_there_is_no_end_marker(url: str) -> None:
    text = httpx.post(f"{url}/v1/responses", json={"input": "u", "stream": True}, timeout=200).text
    lines = text.splitlines()
    assert [line[7:] for line in lines if line.startswith("event: ")] == EVENTS
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "toy", "input": "u", "include": ["message.output_text.logprobs"]}
    if stream:
        events = list(client.responses.create(**settings, top_logprobs=1, stream=True))
        logprobs: list[Any] = [one for e in events if isinstance(e, ResponseTextDeltaEvent) for one in e.logprobs]
    else:
        item = client.responses.create(**settings, top_logprobs=1).output[0]
        logprobs = item.content[0].logprobs  # type: ignore[union-attr]
    assert [(one.token, one.logprob) for one in logprobs][:2] == [("h", -104.0), ("e", -101.0)]
    assert [top.token for top in logprobs[0].top_logprobs] == ["a"]


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    given = {"top_k": 3, "seed": 5, "presence_penalty": 0.5, "stop_token_ids": [7], "ignore_eos": True}
    client.responses.create(model="toy", input="u", top_p=0.5, max_output_tokens=3, extra_body=given)
    params = engine.seen[-1][1]
    assert (params.top_p, params.max_tokens, params.top_k, params.seed) == (0.5, 3, 3, 5)
    assert (params.presence_penalty, params.stop_token_ids, params.ignore_eos) == (0.5, (7,), True)
    client.responses.create(model="toy", input="u" * 100 + "v", truncation="auto")
    assert len(engine.seen[-1][0]) == 63


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"max_output_tokens": 65}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"truncation": "often"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": "u" * 100}, None),
        ({"request_id": "a b"}, "request_id"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: openai.OpenAI, settings: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="toy", input="u", extra_body=settings)
    assert caught.value.param == param


def test_what_has_no_effect_is_accepted(client: openai.OpenAI) -> None:
    done = client.responses.create(
        model="toy",
        input="u",
        store=False,
        tools=[],
        text={"format": {"type": "text"}},
        parallel_tool_calls=True,
        user="x",
        service_tier="auto",
        truncation="disabled",
        prompt_cache_key="k",
    )
    assert done.output_text == "hey"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="u")
    with pytest.raises(openai.NotFoundError, match="responses are not stored"):
        client.responses.retrieve(done.id)


def test_an_error_during_a_stream_is_an_event(model_path: Path) -> None:
    engine = FakeEngine(fails_after=1, error=RunError("stage 1 of 2 was lost"))
    with serving(engine, model_path) as url, client_of(url) as client:
        events = list(client.responses.create(model="toy", input="u", stream=True))
    error = events[-1]
    assert isinstance(error, ResponseErrorEvent)
    assert "stage 1 of 2 was lost" in error.message
    assert error.sequence_number == len(events) - 1
