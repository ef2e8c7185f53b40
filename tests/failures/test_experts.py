"""Experts: identified by id, complete, each on exactly the ranks that should hold it."""

from __future__ import annotations

import pytest

from tests.failures.conftest import Sound


@pytest.mark.parametrize("preset", ["glm-5.1-fp8", "deepseek-v3"])
@pytest.mark.parametrize(
    ("experts", "which"),
    [("3", "expert 3 (of 4) of layer 2 is"), ("[13]", "experts 1, 3 (of 4) of layer 2 are"), (r"\d+", "any of the 4")],
)
def test_experts_missing_from_a_layer_are_one_finding_that_names_their_ids(
    experts: str, which: str, preset: str, sound: Sound
) -> None:
    found = sound(preset).drop(rf"layers\.2\.mlp\.experts\.{experts}\.").only(4)
    assert (found.code, found.severity, found.ranks) == ("expert-incomplete", "error", (2,))
    assert str(found.tensor).startswith("model.layers.2.mlp.experts.")
    assert which in found.message


def test_the_same_experts_missing_from_many_layers_are_one_finding(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").drop(r"layers\.[123]\.mlp\.experts\.2\.").only(4)
    assert (found.code, found.tensor) == ("expert-incomplete", "model.layers.1.mlp.experts.2.*")
    assert found.ranks == (1, 2, 3)
    assert "layers 1-3" in found.message


@pytest.mark.parametrize(("expert", "ranks"), [(0, (2,)), (1, (2,)), (2, (3,)), (3, (3,))])
def test_under_expert_parallelism_a_missing_expert_touches_only_its_holder(
    expert: int, ranks: tuple[int, ...], sound: Sound
) -> None:
    damaged = sound("glm-5.1-fp8").drop(rf"layers\.2\.mlp\.experts\.{expert}\.")
    assert damaged.only(2, 2, enable_expert_parallel=True).ranks == ranks
    assert damaged.only(2, 2).ranks == (2, 3)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_one_matrix_of_one_expert_missing_is_a_finding_at_that_tensor(part: str, sound: Sound) -> None:
    found = sound("deepseek-v3").drop(rf"layers\.3\.mlp\.experts\.1\.{part}\.weight$").only(2)
    assert (found.code, found.tensor) == ("tensor-missing", f"model.layers.3.mlp.experts.1.{part}.weight")


def test_one_matrix_of_every_expert_missing_is_one_finding_that_counts_them(sound: Sound) -> None:
    found = sound("deepseek-v3").drop(r"layers\.\d+\.mlp\.experts\.\d+\.up_proj\.weight$").prove(2).findings[0]
    assert (found.code, found.tensor) == ("tensor-missing", "model.layers.1.mlp.experts.0.up_proj.weight")
    assert "and 11 more like it" in found.message


def test_experts_pruned_under_the_original_config_are_named_by_the_ids_that_are_gone(sound: Sound) -> None:
    errors = [f for f in sound("glm-5.1-fp8").config(n_routed_experts=8).prove(2).findings if f.severity == "error"]
    assert errors[0].code == "expert-incomplete"
    assert "experts 4-7 (of 8) of layers 1-3" in errors[0].message
    assert {f.code for f in errors} == {"expert-incomplete", "shape-mismatch"}  # the router's rows are fewer, too


def test_an_expert_more_than_the_config_has_is_left_over_as_one_finding(sound: Sound) -> None:
    found = sound("glm-5.1-fp8").copy(r"layers\.2\.mlp\.experts\.3\.", "layers.2.mlp.experts.4.").only(2)
    assert (found.code, found.tensor) == ("tensor-unexpected", "model.layers.2.mlp.experts.4.*")


def test_experts_numbered_from_one_are_seen_by_id_and_never_by_position(sound: Sound) -> None:
    proof = sound("glm-5.1-fp8").rename(r"layers\.2\.mlp\.experts\.0\.", "layers.2.mlp.experts.4.").prove(2)
    assert [(f.code, f.tensor) for f in proof.findings] == [
        ("expert-incomplete", "model.layers.2.mlp.experts.0.*"),
        ("tensor-unexpected", "model.layers.2.mlp.experts.4.*"),
    ]
