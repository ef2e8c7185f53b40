"""The reference of drafts: on a trained model they leave the greedy answer as it is, and most first drafts are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.models.draft_reference import Answer, DraftReference

GLM = Path(__file__).parents[2] / "demo" / "glm"
PROMPTS = ("And it came to pass in those days,", "Elizabeth could not but")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> DraftReference:
    return DraftReference(GLM, tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="module")
def answers(reference: DraftReference) -> list[tuple[list[int], Answer]]:
    tokenizer = Tokenizer.from_file(str(GLM / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    return [(prompt, reference.answer(prompt, 20, num_drafts=2)) for prompt in prompts]


def test_drafts_leave_the_greedy_answer_as_it_is(
    reference: DraftReference, answers: list[tuple[list[int], Answer]]
) -> None:
    for prompt, answer in answers:
        _, choices = reference.read(prompt + answer.tokens)
        assert answer.tokens == choices[len(prompt) - 1 : -1]


def test_most_first_drafts_are_accepted(answers: list[tuple[list[int], Answer]]) -> None:
    rounds = [accepted for _, answer in answers for accepted in answer.accepted]
    assert sum(accepted > 0 for accepted in rounds) / len(rounds) > 0.6


def test_a_round_makes_the_accepted_drafts_and_one_token(answers: list[tuple[list[int], Answer]]) -> None:
    for _, answer in answers:
        assert len(answer.tokens) == sum(answer.accepted) + len(answer.accepted)
        assert all(len(drafts) == 2 for drafts in answer.drafts)


def test_shares_count_rounds_in_which_all_drafts_up_to_one_were_accepted() -> None:
    assert Answer(drafts=[[1, 2], [3, 4], [5, 6], [7, 8]], accepted=[0, 1, 2, 2]).shares() == [0.75, 0.5]
