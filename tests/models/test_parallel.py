"""Tensor and expert parallelism against transformers: logits, greedy tokens, and the same bits on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.distributed.tensor import HostGroup
from loadmaster.synth import PRESETS, write_tiny
from tests.conftest import Tiny
from tests.models.ranks import Ranks, ranks
from tests.models.reference import distance, greedy, transformers_model
from tests.models.test_families import CASES

PROMPT = [7, 250, 31, 99, 14, 3, 200, 180, 66, 45, 12, 301, 77, 5, 5, 41, 260, 19, 130, 8]  # longer than index_topk
DEALT = {"enable_expert_parallel": True}
REDUNDANT = {**DEALT, "expert_placement": "round_robin", "num_redundant_experts": 2}


def check(made: Ranks, expected: torch.Tensor) -> None:
    by_rank = made.logits(PROMPT)
    assert by_rank[0].shape == expected.shape
    assert distance(by_rank[0], expected) < 1e-5
    assert all(torch.equal(logits, by_rank[0]) for logits in by_rank[1:])


def expected_logits(path: Path, folder: Path) -> tuple[torch.Tensor, list[int]]:
    model = transformers_model(path, folder)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    return logits, greedy(model, PROMPT, 6)


@pytest.mark.parametrize(
    ("family", "layouts"),
    [
        ("glm-5.1-fp8", [(2, 1, {}), (2, 1, REDUNDANT)]),
        ("glm-5.2-fp8", [(2, 2, DEALT)]),
        ("deepseek-v3", [(4, 1, {})]),
        ("llama", [(2, 1, {}), (2, 2, {})]),
        ("qwen3", [(8, 1, {})]),  # 4 heads of keys and values for 8 ranks
        ("qwen2", [(2, 1, {})]),  # biases on q, k and v
    ],
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    family: str, layouts: list[tuple[int, int, dict[str, Any]]], tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny(family)
    logits, tokens = expected_logits(path, tmp_path)
    for size, num_stages, layout in layouts:
        with ranks(path, size, num_stages=num_stages, **layout) as made:
            check(made, logits)
            assert made.greedy(PROMPT, len(tokens)) == [tokens] * size, (size, num_stages, layout)


def test_the_bias_of_an_output_is_added_once(tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path / "tiny", overrides={"attention_bias": True, "mlp_bias": True})
    logits, _ = expected_logits(tmp_path / "tiny", tmp_path / "plain")
    with ranks(tmp_path / "tiny", 2) as made:
        check(made, logits)


@pytest.mark.parametrize(("tied", "num_stages"), [(False, 1), (True, 1), (True, 2)])
def test_a_padded_vocabulary_has_no_more_logits_than_tokens(tied: bool, num_stages: int, tmp_path: Path) -> None:
    write_tiny(PRESETS["llama"], tmp_path / "tiny", overrides={"vocab_size": 330, "tie_word_embeddings": tied})
    logits, tokens = expected_logits(tmp_path / "tiny", tmp_path / "plain")
    with ranks(tmp_path / "tiny", 4, num_stages=num_stages) as made:
        assert made.stages[3][-1].vocab_size == 330
        check(made, logits)
        assert made.greedy(PROMPT, len(tokens)) == [tokens] * 4


def test_each_rank_caches_its_own_heads(tiny: Tiny) -> None:
    per_token = {}
    for size in (1, 2, 8):
        with ranks(tiny("qwen3"), size) as made:
            per_token[size] = made.stages[0][0].page_bytes(1)
    assert (per_token[2], per_token[8]) == (per_token[1] // 2, per_token[1] // 4)  # 4 heads, each on two of eight ranks


@pytest.mark.parametrize("family", ["llama", "glm-5.1-fp8"])
def test_a_sum_that_is_left_out_changes_the_logits(family: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests above would pass if the ranks' parts were nearly zero."""
    with ranks(tiny(family), 2) as made:
        whole = made.logits(PROMPT)[0]
        reduced = HostGroup.all_reduce
        for lost in range(1, 5):
            calls = {0: 0, 1: 0}

            def forgetful(
                group: HostGroup, x: torch.Tensor, calls: dict[int, int] = calls, lost: int = lost
            ) -> torch.Tensor:
                calls[group.slot] += 1
                total = reduced(group, x.clone())
                return x if calls[group.slot] == lost else total

            monkeypatch.setattr(HostGroup, "all_reduce", forgetful)
            assert (made.logits(PROMPT)[0] - whole).abs().max() > 1e-3, lost


@pytest.mark.parametrize(
    ("case", "size", "layout"),
    [
        ("qwen2-moe", 2, {}),  # a shared expert with a gate
        ("minimax-m2", 8, DEALT),  # norms over all heads; two ranks hold each of the 4 heads of keys
        ("olmo-2", 2, {}),  # norms over all heads
        ("phi-4", 2, {}),
        ("gemma-3", 2, {}),
        ("gpt-oss, clamped", 2, {}),  # biases of experts, which one rank adds
        ("gpt-oss, clamped", 2, DEALT),
        ("granite-moe, scaled", 2, DEALT),
        ("glm-4.5", 2, {}),
        ("mixtral", 2, DEALT),
    ],
)
def test_several_ranks_compute_what_one_does(case: str, size: int, layout: dict[str, Any], tmp_path: Path) -> None:
    preset, overrides = CASES[case]
    write_tiny(PRESETS[preset] if isinstance(preset, str) else preset, tmp_path, overrides=overrides)
    with ranks(tmp_path, 1) as one, ranks(tmp_path, size, **layout) as made:
        check(made, one.logits(PROMPT)[0])
