"""Plans of vLLM's parameters, loaded without vLLM, against what its own loader writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loadmaster.audit.ranks import Rank
from loadmaster.checkpoint import open_checkpoint
from loadmaster.integrations.vllm.direct import Planned
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from tests.integrations.vllm.golden import DRAFT, FILES, SINCE, before, goldens, ranks_of, room_of, told, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def path(preset: str) -> Path:
        if preset not in paths:
            paths[preset] = write(preset, tmp_path_factory.mktemp(preset))
        return paths[preset]

    return path


def of_each_version() -> Iterator[tuple[str, str, Rank]]:
    """Yield what each version's file has, and not again what the next versions have alike."""
    for target in FILES:
        known = before(target)
        for preset, ranks in ranks_of(target).items():
            if goldens(target).get(preset) != known.get(preset):
                yield from ((target, preset, rank) for rank in ranks)


def is_draft(case: tuple[str, str, Rank]) -> bool:
    return case[1].endswith(DRAFT)


@pytest.mark.parametrize("target", SINCE)
def test_every_rank_of_every_preset_has_digests(target: str) -> None:
    told_of = {preset: set(ranks) for preset, ranks in goldens(target).items()}
    assert told_of == {preset: {str(rank) for rank in ranks} for preset, ranks in ranks_of(target).items()}


@pytest.mark.parametrize(("target", "preset", "rank"), [c for c in of_each_version() if not is_draft(c)], ids=str)
def test_a_plan_writes_what_vllms_own_loader_writes(
    target: str, preset: str, rank: Rank, made: Callable[[str], Path]
) -> None:
    (pp, stages), (tp, cuts) = rank.pp, rank.tp
    layout = ParallelLayout(stages, cuts, enable_expert_parallel=rank.ep)
    checkpoint, room = open_checkpoint(made(preset)), room_of(preset, rank)
    plan = prove(build_plan(checkpoint, layout, target=target, expert_sizes=room)).require_proven()
    loaded = load_rank(plan, pp * cuts + tp)
    params = {s.name: loaded.tensors[s.name] for s in loaded.specs if s.alias is None}
    made_here, of_vllm = told(params), goldens(target)[preset][str(rank)]
    assert made_here.keys() == of_vllm.keys()
    computed = {plan.target.named(p, 0, 1).replace(".0.", ".*.") for p in plan.target.computed}
    unlike = [key for key in of_vllm if of_vllm[key] != made_here[key]]
    assert {key.partition(" ")[0] for key in unlike} <= computed


@pytest.mark.parametrize(("target", "preset", "rank"), [c for c in of_each_version() if is_draft(c)], ids=str)
def test_a_plan_writes_the_draft_that_vllms_own_loader_writes(
    target: str, preset: str, rank: Rank, made: Callable[[str], Path]
) -> None:
    """But for embedding and head, which vLLM replaces by the model's own on one stage."""
    checkpoint = open_checkpoint(made(preset))
    layout = ParallelLayout(1, rank.tp[1], enable_expert_parallel=rank.ep)
    num_drafts = build_plan(checkpoint, layout, target=target).schema.num_drafts
    plan = prove(build_plan(checkpoint, replace(layout, num_draft_layers=num_drafts), target=target)).require_proven()
    loaded = load_rank(plan, rank.tp[0])
    planned = Planned(plan, rank.tp[0], is_draft=True)
    made_here = told({name: loaded.tensors[spec.name] for spec, name in planned.params})
    of_vllm = goldens(target)[preset][str(rank)]
    shared = ("lm_head.", "model.embed_tokens.", "model.layers.*.shared_head.head.")
    left = {key for key in of_vllm if key.startswith(shared)} - made_here.keys()
    assert made_here == {key: digests for key, digests in of_vllm.items() if key not in left}
