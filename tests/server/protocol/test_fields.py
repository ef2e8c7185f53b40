"""Every field of completions and chat completions with the real client: what reaches the engine, and what comes back."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.fake import EOS, FakeEngine, client_of, serving

USER = [{"role": "user", "content": "u"}]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(b"hey you")


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    return client.completions.create(**{"model": "toy", "prompt": "a", "max_tokens": 30}, extra_body=fields)


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="toy", messages=USER, extra_body=fields)  # type: ignore[arg-type]


def test_masks_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    complete(client, allowed_token_ids=[5, 3, 5], bad_words=["ab", " c"])
    params = engine.seen[-1][1]
    assert params.allowed_token_ids == (3, 5)
    assert params.bad_words_token_ids == ((97, 98), (99,)), "the same word after a space has one byte more"


def test_a_stop_string_is_part_of_the_text_only_where_asked_for(client: openai.OpenAI) -> None:
    for include, text in ((False, "hey"), (True, "hey yo")):
        choice = complete(client, stop=[" yo"], include_stop_str_in_output=include).choices[0]
        assert (choice.text, choice.finish_reason, choice.stop_reason) == (text, "stop", " yo")
        parts = list(
            client.completions.create(
                model="toy",
                prompt="a",
                max_tokens=30,
                stop=" yo",
                stream=True,
                extra_body={"include_stop_str_in_output": include},
            )
        )
        assert "".join(p.choices[0].text for p in parts) == text


def test_a_stop_token_is_named_and_the_end_token_is_not(client: openai.OpenAI) -> None:
    choice = complete(client, stop_token_ids=[ord("y")]).choices[0]
    assert (choice.text, choice.stop_reason) == ("he", ord("y"))
    choice = complete(client, stop_token_ids=[ord("y")], include_stop_str_in_output=True).choices[0]
    assert choice.text == "hey"
    assert complete(client).choices[0].stop_reason is None


def test_special_tokens_are_text_only_where_asked_for(client: openai.OpenAI) -> None:
    fields = {"include_stop_str_in_output": True}
    assert complete(client, **fields).choices[0].text == "hey you"
    assert complete(client, **fields, skip_special_tokens=False).choices[0].text == "hey you<|end|>"


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "fgh"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc"),
        ({"truncate_prompt_tokens": 64}, "abcdefgh"),
        ({"truncate_prompt_tokens": -1}, "abcdefgh"),
    ],
)
def test_a_prompt_is_cut(client: openai.OpenAI, engine: FakeEngine, fields: dict[str, Any], kept: str) -> None:
    for prompt in ("abcdefgh", [*b"abcdefgh"]):
        done = complete(client, prompt=prompt, echo=True, **fields)
        assert engine.seen[-1][0] == [*kept.encode()]
        assert done.choices[0].text == kept + "hey you"
        assert done.usage.prompt_tokens == len(kept)


def test_a_prompt_that_is_too_long_is_cut_to_leave_room_for_a_token(client: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError, match="the prompt has"):
        complete(client, prompt="x" * 64)
    complete(client, prompt="x" * 5000 + "end", truncate_prompt_tokens=-1)
    assert engine.seen[-1][0] == [*(b"x" * 60 + b"end")]
    chat(client, truncate_prompt_tokens=2)
    assert engine.seen[-1][0] == [257, 260]


def test_an_answer_may_be_as_long_as_the_model_and_not_longer(client: openai.OpenAI, engine: FakeEngine) -> None:
    """vLLM's conditions: the answer alone is compared with the model's length; it ends where that ends."""
    complete(client, max_tokens=64)
    for name in ("max_tokens", "max_completion_tokens"):
        chat(client, **{name: 64})
        with pytest.raises(openai.BadRequestError, match=f"{name} is 65, expected at most 64"):
            chat(client, **{name: 65})
    chat(client, max_tokens=65, max_completion_tokens=3)
    assert engine.seen[-1][1].max_tokens == 3, "the newer name counts"


def test_the_best_answers_are_returned_the_best_first(model_path: Path) -> None:
    class Varied(FakeEngine):
        """Answers f, ee, d, cc: the second and the last have the highest log probability per token, with the end token."""

        def _answer(self, prompt: Any, params: Any, stream: Any, cancelled: Any) -> None:
            FakeEngine(bytes([ord("f") - params.seed % 7] * (1 + params.seed % 2)))._answer(
                prompt, params, stream, cancelled
            )

    engine = Varied()
    with serving(engine, model_path) as url, client_of(url) as client:
        done = client.completions.create(
            model="toy", prompt=["a", "b"], n=2, best_of=4, seed=0, extra_body={"ignore_eos": True}
        )
    assert [(c.index, c.text[:1]) for c in done.choices] == [(0, "c"), (1, "e"), (2, "c"), (3, "e")]
    assert all(c.logprobs is None for c in done.choices), "they were only needed to compare"
    assert done.usage is not None
    assert done.usage.completion_tokens > sum(len(c.text) for c in done.choices), "all candidates count"


def test_tokens_are_written_as_ids_where_asked_for(client: openai.OpenAI) -> None:
    logprobs = complete(client, logprobs=1, max_tokens=2, return_tokens_as_token_ids=True).choices[0].logprobs
    assert logprobs.tokens == ["token_id:104", "token_id:101"]
    assert logprobs.top_logprobs[0] == {"token_id:104": -104.0, "token_id:97": -97.0}
    content = chat(client, logprobs=True, top_logprobs=1, max_tokens=1, return_tokens_as_token_ids=True)
    assert content.choices[0].logprobs.content[0].top_logprobs[0].token == "token_id:97"


def test_token_ids_of_prompt_and_answer(client: openai.OpenAI, engine: FakeEngine) -> None:
    settings: dict[str, Any] = {"model": "toy", "stream": True, "extra_body": {"return_token_ids": True}}
    parts = list(client.completions.create(prompt="ab", **settings))
    first, *others = [p.choices[0].model_extra or {} for p in parts]
    assert first["prompt_token_ids"] == [97, 98]
    assert all("prompt_token_ids" not in extra for extra in others)
    assert [t for extra in (first, *others) for t in extra["token_ids"]] == [*b"hey you", EOS]
    chunks = list(client.chat.completions.create(messages=USER, **settings))  # type: ignore[arg-type]
    assert chunks[0].model_extra == {"prompt_token_ids": engine.seen[-1][0]}
    done = chat(client, return_token_ids=True)
    assert done.prompt_token_ids == engine.seen[-1][0]
    assert done.choices[0].token_ids == [*b"hey you", EOS]


def test_usage_in_each_chunk_counts_the_choice_so_far(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    parts = list(
        client.completions.create(model="toy", prompt="ab", max_tokens=3, stream=True, stream_options=options, n=2)
    )
    *chunks, last = parts
    counts: dict[int, list[int]] = {0: [], 1: []}
    for part in chunks:
        assert part.usage is not None
        assert part.usage.prompt_tokens == 2
        counts[part.choices[0].index].append(part.usage.completion_tokens)
    assert {i: sorted(set(seen)) for i, seen in counts.items()} == {0: [1, 2, 3], 1: [1, 2, 3]}
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 6)
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens == 0


def test_streamed_tokens_are_gathered(client: openai.OpenAI) -> None:
    parts = list(
        client.completions.create(
            model="toy", prompt="a", max_tokens=30, stream=True, extra_body={"stream_interval": 3}
        )
    )
    assert [p.choices[0].text for p in parts] == ["h", "ey ", "you", ""]


def test_an_answers_id_has_the_requests(client: openai.OpenAI) -> None:
    assert complete(client, request_id="abc.1:2_3-4").id == "cmpl-abc.1:2_3-4"
    assert chat(client, request_id="x" * 128).id == "chatcmpl-" + "x" * 128


def test_a_message_is_continued_and_repeated(client: openai.OpenAI, engine: FakeEngine) -> None:
    messages: Any = [*USER, {"role": "assistant", "content": "I sa"}]
    settings: dict[str, Any] = {"model": "toy", "messages": messages}
    body = {"continue_final_message": True, "echo": True}
    done = client.chat.completions.create(**settings, extra_body=body)
    assert engine.seen[-1][0] == [259, *b"u", 257, 260, *b"I sa"], "no end token, and no new message"
    assert (done.choices[0].message.role, done.choices[0].message.content) == ("assistant", "I sahey you")
    parts = list(client.chat.completions.create(**settings, stream=True, extra_body=body))
    assert "".join(p.choices[0].delta.content or "" for p in parts) == "I sahey you"
    plain = client.chat.completions.create(**settings, extra_body={"echo": True})
    assert plain.choices[0].message.content == "I sahey you", "the last message has the answer's role"
    assert client.chat.completions.create(
        model="toy", messages=USER, extra_body={"echo": True}  # type: ignore[arg-type]
    ).choices[0].message.content == "hey you"  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="continue_final_message is not allowed"):
        client.chat.completions.create(**settings, extra_body={**body, "add_generation_prompt": True})


def test_the_role_of_an_answer_without_a_new_message_is_the_last_ones(client: openai.OpenAI) -> None:
    parts = client.chat.completions.create(
        model="toy", messages=USER, stream=True, extra_body={"add_generation_prompt": False}  # type: ignore[arg-type]
    )  # fmt: skip
    assert next(iter(parts)).choices[0].delta.role == "user"


def test_special_tokens_and_documents_of_a_chat(client: openai.OpenAI) -> None:
    chat(client, add_special_tokens=True, documents=[{"title": "t", "text": "d"}])
    with pytest.raises(openai.BadRequestError, match="documents"):
        chat(client, documents=["d"])
    with pytest.raises(openai.BadRequestError, match="chat_template is not supported"):
        chat(client, chat_template="{{ messages }}")


def test_fields_without_effect_change_nothing_and_are_not_reported(client: openai.OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(
        model="toy",
        messages=USER,  # type: ignore[arg-type]
        user="u",
        metadata={"a": "b"},
        service_tier="auto",
        store=False,
        safety_identifier="s",
        prompt_cache_key="k",
        prediction={"type": "content", "content": "hey"},
        modalities=["text"],
        verbosity="medium",
        stream_options=None,
        extra_body={"priority": 0, "spaces_between_special_tokens": False, "best_of": 1, "session_id": "x"},
    )
    assert response.parse().choices[0].message.content == "hey you"
    assert "x-loadmaster-ignored-fields" not in response.headers


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"modalities": ["text", "audio"]},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"logprob_token_ids": [1]},
        {"prompt_embeds": "x"},
        {"vllm_xargs": {"a": 1}},
        {"kv_transfer_params": {"a": 1}},
        {"repetition_detection": {}},
        {"return_prompt_text": True},
        {"watermarking": True},
        {"routed_experts_prompt_start": 1},
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    [name] = fields
    with pytest.raises(openai.BadRequestError, match=f"{name}=.* is not supported") as caught:
        chat(client, **fields)
    assert caught.value.param == name
