"""Several answers to a request, and log probabilities, with the real client. A token's log probability is -its number."""

from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.fake import EOS, FakeEngine, client_of, serving


def test_each_prompt_gets_n_answers_whose_seeds_follow_each_other(client: openai.OpenAI, engine: FakeEngine) -> None:
    done = client.completions.create(model="toy", prompt=["a", "bc"], n=2, best_of=2, max_tokens=2, seed=7)
    assert [(c.index, c.text) for c in done.choices] == [(i, "he") for i in range(4)]
    assert [(p, params.seed) for p, params in engine.seen[-4:]] == [
        ([97], 7), ([97], 8), ([98, 99], 7), ([98, 99], 8)
    ]  # fmt: skip
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 8), "a prompt counts once"


def test_the_largest_seed_is_followed_by_the_smallest(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.completions.create(model="toy", prompt="a", n=2, max_tokens=1, seed=2**63 - 1)
    assert [params.seed for _, params in engine.seen[-2:]] == [2**63 - 1, -(2**63)]


def test_all_answers_are_computed_at_the_same_time(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.endless, engine.most_running = True, 0
    try:
        with client.completions.create(model="toy", prompt=["a", "b"], n=3, stream=True) as parts:
            seen = set()
            for part in parts:
                seen.add(part.choices[0].index)
                if len(seen) == 6:
                    break
        assert engine.most_running == 6
    finally:
        engine.endless = False


def test_each_streamed_answer_has_its_index(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    roles = set()
    for part in client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "u"}], n=2, stream=True
    ):
        choice = part.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.delta.role:
            roles.add(choice.index)
    assert texts == {0: "hey", 1: "hey"}
    assert roles == {0, 1}


def test_sampling_parameters_reach_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    given: dict[str, Any] = {"min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2}
    client.completions.create(
        model="toy", prompt="a", presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"5": 1.5}, extra_body=given
    )
    params = engine.seen[-1][1]
    assert {name: getattr(params, name) for name in given} == given
    assert (params.presence_penalty, params.frequency_penalty, params.biases) == (0.5, -0.5, ((5, 1.5),))


def test_a_stop_string_is_not_looked_for_before_min_tokens(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "toy", "prompt": "a", "stop": ["e", "y"]}
    assert client.completions.create(**settings).choices[0].text == "h"
    assert client.completions.create(**settings, extra_body={"min_tokens": 2}).choices[0].text == "he"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_completion(client: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "toy", "prompt": "a", "logprobs": 2}
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for done in (
        client.completions.create(**settings, stream=True) if stream else [client.completions.create(**settings)]
    ):
        got = done.choices[0].logprobs
        assert got is not None
        tokens += got.tokens or ()
        values += got.token_logprobs or ()
        tops += got.top_logprobs or ()
        offsets += got.text_offset or ()
    assert tokens == ["h", "e", "y", "<|end|>"]
    assert values == [-104.0, -101.0, -121.0, -EOS]
    assert offsets == [0, 1, 2, 3]
    assert tops[0] == {"h": -104.0, "a": -97.0, "b": -98.0}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat_completion(client: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "u"}], "max_tokens": 2}
    settings |= {"logprobs": True, "top_logprobs": 1}
    if stream:
        parts = [p.choices[0].logprobs for p in client.chat.completions.create(**settings, stream=True)]
        content = [t for p in parts if p is not None for t in p.content or ()]
    else:
        got = client.chat.completions.create(**settings).choices[0].logprobs
        assert got is not None
        content = got.content or []
    assert [(t.token, t.bytes, t.logprob) for t in content] == [("h", [104], -104.0), ("e", [101], -101.0)]
    assert [[(top.token, top.logprob) for top in t.top_logprobs] for t in content] == [[("a", -97.0)]] * 2


def test_top_logprobs_need_logprobs(client: openai.OpenAI) -> None:
    for settings in ({"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": 1}):
        with pytest.raises(openai.BadRequestError, match=next(reversed(settings))):
            client.chat.completions.create(
                model="toy", messages=[{"role": "user", "content": "u"}], extra_body=settings
            )


def test_log_probabilities_of_the_prompt_have_vllms_form(client: openai.OpenAI) -> None:
    entry = {
        "98": {"logprob": -98.0, "rank": 9, "decoded_token": "b"},
        "97": {"logprob": -97.0, "rank": 1, "decoded_token": "a"},
    }
    done = client.completions.create(model="toy", prompt="ab", max_tokens=1, extra_body={"prompt_logprobs": 1})
    assert done.choices[0].model_extra is not None
    assert done.choices[0].model_extra["prompt_logprobs"] == [None, entry]
    chat = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "b"}], max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    assert chat.model_extra is not None
    first, *others = chat.model_extra["prompt_logprobs"]
    assert first is None
    assert entry in others


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("max_tokens", "text"), [(2, "abhe"), (0, "ab")])
def test_echo_repeats_the_prompt_with_its_log_probabilities(
    client: openai.OpenAI, max_tokens: int, text: str, stream: bool
) -> None:
    settings: dict[str, Any] = {"model": "toy", "prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": max_tokens}
    parts = (
        list(client.completions.create(**settings, stream=True)) if stream else [client.completions.create(**settings)]
    )
    assert "".join(p.choices[0].text for p in parts) == text
    assert parts[-1].choices[0].finish_reason == "length"
    logprobs = [p.choices[0].logprobs for p in parts]
    assert [t for p in logprobs if p for t in p.tokens or ()] == list(text)
    assert [v for p in logprobs if p for v in p.token_logprobs or ()] == [None, *(-float(ord(c)) for c in text[1:])]
    assert [o for p in logprobs if p for o in p.text_offset or ()] == list(range(len(text)))
    if not stream:
        assert parts[0].usage is not None
        assert parts[0].usage.completion_tokens == max_tokens


def test_the_models_own_sampling_parameters_apply(model_path: Path) -> None:
    engine = FakeEngine()
    engine.limits.sampling.update({"repetition_penalty": 1.1})  # type: ignore[attr-defined]
    with serving(engine, model_path) as url, client_of(url) as client:
        client.completions.create(model="toy", prompt="a")
        client.completions.create(model="toy", prompt="a", extra_body={"repetition_penalty": 1})
    assert [params.repetition_penalty for _, params in engine.seen] == [1.1, 1]
