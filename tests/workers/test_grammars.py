"""Masks of grammars in the sampler, against Python's own ``re`` and ``json``, and the ``jsonschema`` package."""

from __future__ import annotations

import json
import math
import random
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import jsonschema
import pytest
import torch

from loadmaster.engine.grammar_check import GrammarCheck
from loadmaster.synth.tokenizer import write_tokenizer
from loadmaster.workers import SamplingParams, StructuredOutputs
from loadmaster.workers.batch import Span, Start
from loadmaster.workers.messages import Vocabulary
from loadmaster.workers.sampler import Sampler
from loadmaster.workers.structured_outputs import Grammar
from tests.workers.plain_sampler import Driver, plain_token

END, VOCAB = 257, 300  # a byte is its own token; the last 38 tokens have no text
PROMPT = (1, 2)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, {})
    return Vocabulary(zlib.compress((folder / "tokenizer.json").read_bytes()), 262)


@pytest.fixture(scope="module")
def compiled() -> Any:
    check = GrammarCheck()
    yield lambda **wanted: check.compiled(StructuredOutputs(**wanted))
    check.close()


@pytest.fixture
def sampler(vocabulary: Vocabulary) -> Sampler:
    sampler = Sampler(VOCAB, [END])
    sampler.grammars.learn(vocabulary)
    return sampler


def prepared(sampler: Sampler, grammar: str) -> str | None:
    """Compile a grammar. Return why it cannot be used."""
    ended: SimpleQueue[str | None] = SimpleQueue()
    sampler.grammars.prepare(grammar, ended.put)
    return ended.get()


def answers(sampler: Sampler, params: Sequence[SamplingParams], most: int = 90, num_drafts: int = 0) -> list[list[int]]:
    """Return what a model with random logits answers to requests that are computed together. It drafts tokens at random."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    tokens: dict[int, list[int]] = {number: [] for number in range(len(params))}
    drafts: dict[int, tuple[int, ...]] = {}
    for number, one in enumerate(params):
        if isinstance(one.structured_outputs, Grammar):
            assert prepared(sampler, one.structured_outputs.text) is None
        sampler.begin(number, Start(one, PROMPT, len(PROMPT)))
    while going_on := [n for n in tokens if len(tokens[n]) < most and END not in tokens[n]]:
        spans = []
        for number in going_on:
            tried = drafts.get(number, ())
            last = len(PROMPT) + len(tokens[number]) - 1
            spans.append(Span(number, last, (0, *tried), num_logits=1 + len(tried)))
        logits = torch.randn(sum(s.num_logits for s in spans), VOCAB, generator=generator) * 3
        logits[:, END] += 4  # so that answers end
        for sampled in sampler.sample(logits, spans):
            assert sampled.error is None, sampled.error
            tokens[sampled.request] += sampled.token_ids
            guesses = tuple(rng.choice([*b'{}[]":, az09', END]) for _ in range(num_drafts))
            [cut] = sampler.without_wrong_drafts([replace(sampled, drafts=guesses)])
            assert cut.drafts == guesses[: len(cut.drafts)]
            drafts[sampled.request] = rng.choice([guesses, cut.drafts])
    return [t[: t.index(END) + 1] if END in t else t for t in tokens.values()]


def text_of(tokens: list[int]) -> str | None:
    """Return the text of an answer that has ended, or None."""
    return bytes(tokens[:-1]).decode() if tokens[-1] == END else None


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", 1, None, {"b": [True]}]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[a-c]{2}$"}]}},
}


def is_json_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


CASES: list[tuple[dict[str, Any], Callable[[str], Any]]] = [
    ({"json_object": True}, is_json_object),
    ({"json": PERSON}, is_person),
    ({"json": json.dumps(PERSON), "disable_any_whitespace": True}, is_person),
    ({"json": PERSON, "whitespace_pattern": " ?"}, is_person),
    ({"regex": r"[a-c]{2,9}(-\d+)?|é+"}, re.compile(r"[a-c]{2,9}(-\d+)?|é+").fullmatch),
    ({"choice": ["yes", "no", "", 'q"\\\n', "😀"]}, ["yes", "no", "", 'q"\\\n', "😀"].__contains__),
    ({"grammar": 'root ::= "(" root ")" | "x"'}, re.compile(r"\(*x\)*").fullmatch),
    ({"grammar": 'start: NUM ("+" NUM)*\nNUM: /[0-9]+/'}, re.compile(r"[0-9]+(\+[0-9]+)*").fullmatch),
]


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize(("wanted", "is_valid"), CASES, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_every_answer_that_ends_is_valid(
    wanted: dict[str, Any], is_valid: Callable[[str], Any], num_drafts: int, sampler: Sampler, compiled: Any
) -> None:
    grammar = compiled(**wanted)
    params = [SamplingParams(temperature=1 + s % 2, seed=s, structured_outputs=grammar) for s in range(40)]
    texts = [text_of(tokens) for tokens in answers(sampler, params, num_drafts=num_drafts)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 5
    for text in ended:
        assert is_valid(text), text


def test_a_grammar_that_cannot_be_used_says_why(sampler: Sampler) -> None:
    error = prepared(sampler, "start: (")
    assert error is not None
    assert error.startswith("structured_outputs are refused: ")
    assert prepared(Sampler(VOCAB, [END]), "start: /a/") == (
        "structured_outputs are not possible: the model has no tokenizer"
    )


def test_any_error_of_the_compiler_is_one_of_the_grammar(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(text: str) -> None:
        raise BaseException("index out of bounds")

    monkeypatch.setattr(sampler.grammars, "_compile", panic)
    assert prepared(sampler, "start: /a/") == ("structured_outputs cannot be used: BaseException: index out of bounds")


def test_a_dropped_grammar_is_not_compiled_and_gets_no_answer(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    answers: SimpleQueue[str | None] = SimpleQueue()
    begun, gate = threading.Event(), threading.Event()

    def compile_slowly(text: str) -> None:
        tried.append(text)
        begun.set()
        gate.wait()

    monkeypatch.setattr(sampler.grammars, "_compile", compile_slowly)
    for text in ("one", "two", "three"):
        sampler.grammars.prepare(text, answers.put)
    begun.wait()
    for text in ("one", "two"):
        sampler.grammars.drop(text)
    gate.set()
    assert [answers.get(), answers.get()] == [None, None]
    assert tried == ["one", "three"]


BIAS = {ord("z"): 100, ord("b"): 4, END: 50}
OTHERS = [
    SamplingParams(temperature=0, logit_bias=BIAS),
    SamplingParams(temperature=0, presence_penalty=2, frequency_penalty=2, logit_bias=BIAS),
    SamplingParams(temperature=0, repetition_penalty=3, bad_words_token_ids=((ord("a"), ord("c")), (ord("d"),))),
    SamplingParams(seed=5, top_k=2, frequency_penalty=-2, allowed_token_ids=(*b"bcdxyz", END)),
    SamplingParams(seed=6, temperature=2, ignore_eos=True, repetition_penalty=0.5),
]


def test_other_parameters_choose_among_the_tokens_that_the_grammar_allows(sampler: Sampler, compiled: Any) -> None:
    """As if all others had the logit -inf: four letters, then end tokens for as long as the request goes on."""
    grammar = compiled(regex="[a-e]{4}")
    assert prepared(sampler, grammar.text) is None
    driver = Driver(VOCAB, [END])
    driver.sampler = sampler
    expected: list[list[int]] = [[] for _ in OTHERS]
    for i, params in enumerate(OTHERS):
        driver.begin(i, replace(params, structured_outputs=grammar), PROMPT)
    for position in range(7):
        allowed = [*b"abcde"] if position < 4 else [END]
        logits = torch.randn(len(OTHERS), VOCAB, generator=torch.Generator().manual_seed(position)) * 2
        driver.step(logits, range(len(OTHERS)))
        for i, params in enumerate(OTHERS):
            row = [x if token in allowed else -math.inf for token, x in enumerate(logits[i].tolist())]
            expected[i].append(plain_token(row, params, PROMPT, expected[i], [END]))
    assert [driver.tokens[i][len(PROMPT) :] for i in range(len(OTHERS))] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(OTHERS)


def test_a_request_whose_parameters_and_grammar_leave_no_token_fails_alone(sampler: Sampler, compiled: Any) -> None:
    grammar = compiled(choice=["ab"])
    assert prepared(sampler, grammar.text) is None
    driver = Driver(VOCAB, [END])
    driver.sampler = sampler
    driver.begin(0, SamplingParams(temperature=0, min_tokens=3, structured_outputs=grammar), PROMPT, b"ab")
    driver.begin(1, SamplingParams(temperature=0, structured_outputs=grammar), PROMPT, b"ab")
    one, other = driver.step(torch.zeros(2, VOCAB), [0, 1])
    assert one.error is not None
    assert one.error.startswith("structured_outputs, allowed_token_ids, bad_words, min_tokens, logit_bias")
    assert other.token_ids == (END,)


def test_a_stop_token_ends_an_answer_where_its_grammar_allows_it(sampler: Sampler, compiled: Any) -> None:
    """Before the grammar is complete only as a part of the text; after it also in place of the end token."""
    grammar = compiled(regex="[ab]{2}")
    assert prepared(sampler, grammar.text) is None
    driver = Driver(VOCAB, [END])
    driver.sampler = sampler
    stop = ord("c")
    for i, answer in enumerate((b"", b"a", b"ab")):
        params = SamplingParams(temperature=0, stop_token_ids=(stop,), structured_outputs=grammar)
        driver.begin(i, params, PROMPT, answer)
    logits = torch.zeros(3, VOCAB)
    logits[:, stop], logits[:, ord("b")] = 9, 5
    assert [s.token_ids for s in driver.step(logits, range(3))] == [(ord("b"),), (ord("b"),), (stop,)]
