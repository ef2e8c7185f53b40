"""Stages built from plans against transformers: logits, greedy tokens, any number of stages, caches."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch

from loadmaster.architectures.registry import read_model
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.models import build_stage
from loadmaster.plan import build_plan, prove
from loadmaster.torch_dtypes import TORCH
from tests.conftest import Tiny
from tests.models.pipeline import Pipeline, stages
from tests.models.reference import greedy, transformers_model

PROMPT = [7, 250, 31, 99, 14, 3, 200, 180, 66, 45, 12, 301, 77, 5, 5, 41, 260, 19, 130, 8]  # longer than index_topk
FAMILIES = [
    "glm-5.1-fp8",
    "glm-5.2-fp8",
    "deepseek-v3",
    "deepseek-v3.2",
    "llama",
    "qwen3",
    "qwen2",
    "mistral",
    "smollm2",
]


def partitions(family: str) -> list[tuple[int, ...]]:
    layers = {"glm-5.2-fp8": 8, "llama": 4, "qwen3": 4, "qwen2": 4, "mistral": 4, "smollm2": 4}.get(family, 6)
    if family == "glm-5.2-fp8":  # layers 0, 1, 2, 6 select; 3, 4, 5, 7 share: cuts before, on and after a shared layer
        return [(8,), (3, 5), (4, 4), (6, 2), (2, 1, 5), (2, 2, 2, 2)]
    even = layers // 4
    return [(layers,), (1, layers - 1), (1, 2, layers - 3), (even, even, even, layers - 3 * even)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers_at_any_number_of_stages(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny(family)
    model = transformers_model(path, tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    tokens = greedy(model, PROMPT, 16)
    one = None
    for turn, partition in enumerate(partitions(family)):
        count = 16 if turn == 0 else 6  # a cache of few tokens shows what is cut wrong
        made = stages(path, partition)
        logits = Pipeline(made).step(PROMPT, all_logits=True)
        assert (logits - expected).abs().max() < 1e-4
        one = logits if one is None else one
        assert torch.equal(logits, one), partition  # the same bits, wherever the cuts are
        assert Pipeline(made).greedy(PROMPT, count) == tokens[:count], partition
    preempted = Pipeline(made, scattered=True).preempted(PROMPT)
    assert (preempted - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("family", "partition"), [("glm-5.2-fp8", (3, 1, 2, 2)), ("qwen3", (1, 3))])
def test_stages_send_what_the_schema_says_in_its_shapes_and_dtypes(
    family: str, partition: tuple[int, ...], tiny: Tiny
) -> None:
    path = tiny(family)
    pipeline = Pipeline(stages(path, partition))
    pipeline.step(PROMPT)
    schema = read_model(open_checkpoint(path).config or {}).schema
    for layer, sent in zip(accumulate(partition[:-1]), pipeline.sent, strict=False):
        carried = {f.name: (TORCH[f.dtype or "F32"], (len(PROMPT), *f.shape)) for f in schema.carried_into(layer)}
        assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()} == carried


@pytest.mark.parametrize("family", ["glm-5.2-fp8", "deepseek-v3", "qwen3"])
def test_cached_decoding_equals_full_recomputation(family: str, tiny: Tiny) -> None:
    made = stages(tiny(family), partitions(family)[1])
    whole = Pipeline(made).step(PROMPT, all_logits=True)
    for sizes in ([1] * len(PROMPT), [7, 1, 12], [19, 1]):
        pipeline, at, rows = Pipeline(made), 0, []
        for size in sizes:
            rows.append(pipeline.step(PROMPT[at : at + size], all_logits=True))
            at += size
        assert (torch.cat(rows) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["glm-5.1-fp8", "glm-5.2-fp8", "deepseek-v3", "qwen3", "mistral"])
def test_requests_computed_together_in_chunks_on_scattered_pages_equal_each_alone(family: str, tiny: Tiny) -> None:
    made = stages(tiny(family), partitions(family)[1])
    prompts = {1: PROMPT, 2: PROMPT[5:], 3: PROMPT[:3], 4: [9] * 30}
    alone = {r: Pipeline(made).step(prompt, all_logits=True) for r, prompt in prompts.items()}
    pipeline = Pipeline(made, scattered=True)
    together: dict[int, list[torch.Tensor]] = {r: [] for r in prompts}
    at = dict.fromkeys(prompts, 0)
    for sizes in ({1: 7, 2: 1}, {3: 3, 1: 1, 4: 12}, {2: 13, 4: 1}, {1: 12, 4: 17, 2: 1}):
        chunks = {r: prompts[r][at[r] : at[r] + size] for r, size in sizes.items()}
        for r, logits in pipeline.batch(chunks, all_logits=True).items():
            together[r].append(logits)
            at[r] += sizes[r]
    for r, prompt in prompts.items():
        assert at[r] == len(prompt)
        assert (torch.cat(together[r]) - alone[r]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("deepseek-v3", {"topk_method": "greedy"}, "topk_method 'greedy'"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ("llama", {"hidden_act": "gelu"}, "'gelu'"),
    ],
)
def test_what_the_forward_pass_does_not_have_is_refused_by_name(
    family: str, change: dict[str, object], says: str, tiny: Tiny
) -> None:
    plan = prove(build_plan(open_checkpoint(tiny(family)))).require_proven()
    derived = plan.rank(0)
    with pytest.raises(UnsupportedError, match=says):
        build_stage(
            read_model({**plan.config, **change}),
            derived.specs,
            load_rank(plan, 0).tensors,
            layers=range(*derived.layers),
            first=True,
            last=True,
            dtype=torch.float32,
        )


def test_a_sliding_window_is_that_of_transformers(tiny_copy: Tiny, tmp_path: Path) -> None:
    import json

    path = tiny_copy("mistral")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "sliding_window": 6}))
    model = transformers_model(path, tmp_path / "plain")
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    assert (Pipeline(stages(path, (2, 2))).step(PROMPT, all_logits=True) - expected).abs().max() < 1e-4
