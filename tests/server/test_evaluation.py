"""How the evaluation through the server is compared with transformers' (`tools.evaluation`)."""

import json
from pathlib import Path
from typing import Any

from tools.evaluation.__main__ import FOLDER, compare, is_score

ROOT = Path(__file__).parents[2]


def samples(likelihoods: list[float], text: str) -> dict[str, Any]:
    cloze = [{"doc_id": 0, "resps": [[[str(value), "False"]] for value in likelihoods]}]
    return {"loadmaster_cloze": cloze, "loadmaster_opposites": [{"doc_id": 0, "resps": [[text]]}]}


def test_the_largest_difference_and_other_answers_are_found() -> None:
    found = compare(samples([-1.0, -2.5], " cold"), samples([-1.0, -2.0], " warm"))
    assert found["num_likelihoods"] == 2
    assert (found["largest_difference"], found["mean_difference"]) == (0.5, 0.25)
    assert found["different_answers"] == [(" cold", " warm")]


def test_scores_are_told_from_their_errors_and_from_counts() -> None:
    results = {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "x", "sample_len": 60}
    assert [name for name, value in results.items() if is_score(name, value)] == ["acc,none"]


def test_every_item_has_four_different_ends_and_a_right_one() -> None:
    items = [json.loads(line) for line in (ROOT / FOLDER / "cloze.jsonl").read_text().splitlines()]
    assert len(items) == 60
    assert all(len(set(i["choices"])) == 4 and i["answer"] in range(4) for i in items)
