"""``text.format`` and reasoning of ``/v1/responses``, with the real client."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Capacity, Engine
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.server.settings import Settings
from loadmaster.workers import StructuredOutputs
from tests.conftest import Tiny
from tests.server.fake import FakeEngine, client_of, serving
from tests.server.test_forced_calls import seen, thinking
from tests.server.test_tools import engine_of, prompt_of

TEMPLATE = (
    "{% for m in messages %}{{ 'R' + m.reasoning if m.reasoning else '' }}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is not false %}<think>{% endif %}{# </think> #}"
)
REASONING_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    *["response.reasoning_text.delta"] * 2,
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
MESSAGE_EVENTS = [
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 2,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


class City(Enum):
    BERN = "Bern"
    ROME = "Rome"


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")

    city: City
    nights: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return engine_of("hm</think>ok")


@pytest.fixture(scope="module")
def client(engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = thinking(tmp_path_factory.mktemp("responses"), TEMPLATE)
    with serving(engine, path) as url, client_of(url) as client:
        yield client


def test_reasoning_is_an_item_of_its_own(client: openai.OpenAI) -> None:
    done = client.responses.create(model="toy", input="u")
    [reasoning, message] = done.output
    assert (reasoning.type, message.type, done.output_text) == ("reasoning", "message", "ok")
    assert [part.text for part in reasoning.content or []] == ["hm"]  # type: ignore[union-attr]
    assert done.usage is not None
    details = done.usage.output_tokens_details
    assert (details.reasoning_tokens, done.usage.output_tokens) == (len("hm</think>"), len("hm</think>ok") + 1)


def test_events_of_reasoning_come_before_those_of_the_message(client: openai.OpenAI) -> None:
    with client.responses.stream(model="toy", input="u") as stream:
        events: list[Any] = list(stream)
        assert [e.type for e in events] == [
            "response.created", "response.in_progress", *REASONING_EVENTS, *MESSAGE_EVENTS, "response.completed"
        ]  # fmt: skip
        assert [e.output_index for e in events[2:-1]] == [0] * len(REASONING_EVENTS) + [1] * len(MESSAGE_EVENTS)
        final = stream.get_final_response()
    assert ([item.type for item in final.output], final.output_text) == (["reasoning", "message"], "ok")


def test_reasoning_that_is_cut_off_is_the_only_item(client: openai.OpenAI) -> None:
    done = client.responses.create(model="toy", input="u", max_output_tokens=2)
    assert [(item.type, item.status) for item in done.output] == [("reasoning", "incomplete")]  # type: ignore[union-attr]
    events = list(client.responses.create(model="toy", input="u", max_output_tokens=2, stream=True))
    assert [e.type for e in events][2:] == [*REASONING_EVENTS, "response.incomplete"]


def test_reasoning_goes_back_as_input(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = client.responses.create(model="toy", input="u")
    again: Any = [{"role": "user", "content": "u"}, *[i.model_dump() for i in first.output]]
    client.responses.create(model="toy", input=[*again, {"role": "user", "content": "v"}])
    assert prompt_of(engine) == "uRhmokv<think>"


def test_the_format_is_followed_after_the_reasoning(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.responses.create(model="toy", input="u", text={"format": {"type": "json_object"}})
    assert seen(engine) == StructuredOutputs(json_object=True, after=(261,))
    assert done.text is not None and done.text.format is not None
    assert done.text.format.type == "json_object"


@pytest.mark.parametrize(
    "text_format",
    [{"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "name": "x"}],
    ids=["unknown", "no name", "no schema"],
)
def test_a_format_that_is_not_valid_is_refused(client: openai.OpenAI, text_format: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="toy", input="u", extra_body={"text": {"format": text_format}})
    assert str(refused.value.param).startswith("text")


def test_a_schema_that_is_nested_too_deep_is_refused_as_text(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"not": schema}
    wanted = {"type": "json_schema", "name": "x", "schema": schema}
    with pytest.raises(openai.BadRequestError, match=r"text\.format has a schema that is nested") as refused:
        client.responses.create(model="toy", input="u", extra_body={"text": {"format": wanted}})
    assert refused.value.param == "text"


@pytest.mark.usefixtures("forked_workers")
def test_a_model_with_random_weights_answers_with_an_object_that_the_client_parses(tiny: Tiny) -> None:
    path = tiny("llama")
    plan = prove(build_plan(open_checkpoint(path), ParallelLayout(), dtype="F32")).require_proven()
    bias = {"9": -100, "10": -100, "13": -100, "32": -100}  # white space is improbable
    with (
        Engine(plan, max_model_len=256, capacity=Capacity(block_size=4)) as engine,
        serving(engine, path, Settings()) as url,
        client_of(url) as client,
    ):
        for seed in range(3):
            given: dict[str, Any] = {"model": "toy", "input": "u", "temperature": 1, "text_format": Trip}
            extra = {"seed": seed, "logit_bias": bias}
            trip = client.responses.parse(**given, extra_body=extra).output_parsed
            assert isinstance(trip, Trip)
            with client.responses.stream(**given, extra_body=extra) as stream:
                assert stream.get_final_response().output_parsed == trip
