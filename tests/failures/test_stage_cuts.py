"""State crossing a stage cut: a stage that begins on a layer which reuses another's top-k indices must be handed them."""

from __future__ import annotations

import pytest

from loadmaster.errors import ConfigError, LayoutError
from loadmaster.plan import Proof
from tests.failures.conftest import Sound

SHARED = (3, 4, 5, 7)
"""The layers of the tiny GLM-5.2 that reuse the selection of the full layers 0, 1, 2 and 6."""


def carries(proof: Proof) -> list[tuple[str, ...]]:
    assert proof.findings == ()
    return [r.carries for r in proof.ranks]


@pytest.mark.parametrize("first", range(1, 8))
def test_a_plan_names_what_a_stage_is_handed_for_every_cut(first: int, sound: Sound) -> None:
    handed = ("hidden_states", "topk_indices") if first in SHARED else ("hidden_states",)
    assert carries(sound("glm-5.2-fp8").prove(2, layer_partition=(first, 8 - first))) == [(), handed]


def test_a_model_without_shared_indexers_is_handed_hidden_states_alone(sound: Sound) -> None:
    assert carries(sound("glm-5.1-fp8").prove(4)) == [(), *[("hidden_states",)] * 3]


@pytest.mark.parametrize(("layer", "rank"), [(2, 0), (6, 1)])
def test_a_layer_that_selects_for_others_and_has_no_indexer_is_a_finding_before_the_stage_that_waits_for_it(
    layer: int, rank: int, sound: Sound
) -> None:
    damaged = sound("glm-5.2-fp8").drop(rf"layers\.{layer}\.self_attn\.indexer\.")
    found = damaged.only(2, layer_partition=(3, 5))
    assert (found.code, found.tensor) == ("tensor-missing", f"model.layers.{layer}.self_attn.indexer.*")
    assert found.ranks == (rank,)


def test_a_model_that_begins_with_a_shared_layer_has_nothing_to_share(sound: Sound) -> None:
    damaged = sound("glm-5.2-fp8").config(indexer_types=["shared", *["full"] * 7])
    with pytest.raises(ConfigError, match="begins with shared"):
        damaged.prove(2)


@pytest.mark.parametrize(
    ("partition", "says"),
    [((4, 3), "sums to 7"), ((8, 0), "leaves a stage without layers"), (None, "9 pipeline stages")],
)
def test_a_cut_that_cannot_be_is_refused_with_the_numbers(
    partition: tuple[int, int] | None, says: str, sound: Sound
) -> None:
    with pytest.raises(LayoutError, match=says):
        sound("glm-5.2-fp8").prove(2 if partition else 9, layer_partition=partition)
