"""Layouts with a cut that is not possible: refused with the nearest one that is; and the even division, which moves."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from loadmaster.audit.case import ACCEPTED
from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.errors import LayoutError
from loadmaster.parallel import ParallelLayout, partition
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.plan.stages import counts_of
from loadmaster.sizing import auto_partition
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS, write_tiny

VLLM = "vllm-0.32"
STARTS = (1, 2, 6)
"""Where vLLM can begin a stage of the tiny GLM-5.2: layers 3, 4, 5 and 7 reuse the selection of layers 2 and 6."""


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """GLM-5.2 with 8 layers, of which 0, 1, 2 and 6 select tokens."""
    folder: Path = tmp_path_factory.mktemp("glm")
    overrides = {**ACCEPTED["glm-5.2-fp8"], "n_routed_experts": 2, "num_experts_per_tok": 1}
    write_tiny(PRESETS["glm-5.2-fp8"], folder, overrides=overrides)
    return open_checkpoint(folder)


def planned(glm: Checkpoint, *counts: int, stages: int = 0, target: str = VLLM) -> Plan:
    layout = ParallelLayout(stages or len(counts), layer_partition=counts or None)
    return build_plan(glm, layout, target=target)


def refusal(glm: Checkpoint, *counts: int, stages: int = 0) -> LayoutError:
    with pytest.raises(LayoutError) as refused:
        planned(glm, *counts, stages=stages)
    assert refused.value.code == "layout-cut"
    return refused.value


def test_cuts_auto_and_plan_agree_about_every_boundary(glm: Checkpoint) -> None:
    listed = {c.layer: c.refused for c in list_boundaries(build_plan(glm, target=VLLM))}
    assert tuple(layer for layer, refused in listed.items() if refused is None) == STARTS
    for layer in range(1, 8):
        assert prove(planned(glm, layer, 8 - layer, target="native")).proven
        if listed[layer] is None:
            assert prove(planned(glm, layer, 8 - layer)).proven
        else:
            assert refusal(glm, layer, 8 - layer).message == f"no stage can begin at layer {layer}: {listed[layer]}"
    for stages in (2, 3, 4):
        plan = planned(glm, stages=stages)
        assert planned(glm, *auto_partition(plan, "vllm")).findings == ()


def test_what_is_named_is_the_nearest_of_all_partitions(glm: Checkpoint) -> None:
    for wanted in combinations(range(1, 8), 2):
        if set(wanted) <= {*STARTS}:
            continue
        hint = str(refusal(glm, *counts_of(wanted, 8)).hint)
        named = tuple(map(int, hint.split("--layer-partition ")[1].split(";")[0].split(",")))
        moves = {
            counts_of(starts, 8): sum(abs(a - b) for a, b in zip(starts, wanted, strict=True))
            for starts in combinations(STARTS, 2)
        }
        assert moves[named] == min(moves.values())
        assert hint.endswith("stages can begin at layers 0-2, 6")


def test_a_cut_that_vllm_cannot_make_says_why_and_which_others_are_like_it(glm: Checkpoint) -> None:
    error = refusal(glm, 3, 1, 4)
    assert error.message == (
        "no stage can begin at layer 3: layer 3 needs topk_indices of layer 2, and vllm-0.32 passes only hidden_states, "
        "residual (likewise layers 4)"
    )


@pytest.mark.parametrize(("counts", "stages"), [((1, 1, 1, 1, 4), 0), ((), 5)])
def test_more_stages_than_can_begin_are_refused_with_the_most_that_can(
    counts: tuple[int, ...], stages: int, glm: Checkpoint
) -> None:
    error = refusal(glm, *counts, stages=stages)
    assert error.message.startswith("5 pipeline stages, and the layers can be divided over 4 at most: layer 3 needs")
    assert error.hint == "-pp 4 at most: stages can begin at layers 0-2, 6"


def test_the_even_division_moves_and_says_so_where_it_must_and_only_there(glm: Checkpoint) -> None:
    plan = planned(glm, stages=2)
    assert plan.stages == ((0, 6), (6, 8)) and plan.layout.layer_partition == (6, 2)
    (found,) = prove(plan).findings
    assert (found.code, found.severity) == ("layout-moved", "warning")
    assert "a stage would begin at layer 4: layer 4 needs topk_indices of layer 2" in found.message
    assert "VLLM_PP_LAYER_PARTITION=6,2" in str(found.hint)
    assert plan == planned(glm, 6, 2) and planned(glm, 6, 2).findings == ()
    assert Plan.from_json(plan.to_json()) == plan
    native = planned(glm, stages=2, target="native")
    assert (native.stages, native.layout.layer_partition) == (partition(8, 2), None)
    assert prove(native).findings == ()
    assert planned(glm, stages=2) != native
