"""Gemma-4 as transformers has it; and the cuts that layers which share a KV cache leave."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loadmaster.architectures.gemma4 import FAMILY
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.sizing import auto_partition
from loadmaster.sizing.cuts import list_boundaries
from loadmaster.synth import PRESETS
from loadmaster.synth.presets import merged
from loadmaster.testing import compare_with_transformers, write_checkpoint
from loadmaster.testing.damaged import DamagedCheckpoint

SHARED = PRESETS["gemma-4-e2b"].config_of(tiny=True)
SPARSE = PRESETS["gemma-4-26b-a4b"].config_of(tiny=True)


def test_a_dense_model_has_the_names_and_shapes_of_transformers() -> None:
    compare_with_transformers(FAMILY, merged(SPARSE, {"text_config": {"enable_moe_block": False}}))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("gemma4") / "shared"
    write_checkpoint(FAMILY, SHARED, folder)
    return folder


def planned(folder: Path, *counts: int, stages: int = 0) -> Plan:
    layout = ParallelLayout(stages or len(counts), layer_partition=counts or None)
    return build_plan(open_checkpoint(folder), layout)


def test_no_cut_separates_a_layer_from_the_one_whose_kv_cache_it_reads(shared: Path) -> None:
    listed = list_boundaries(planned(shared, stages=1))
    assert [c.layer for c in listed if c.refused is None] == [1, 2, 3]
    assert {c.crosses for c in listed[1:4]} == {(("hidden_states", 96 * 2), ("per_layer_inputs", 10 * 8 * 2))}
    assert str(listed[4].refused).endswith("reads the KV cache of layer 3")
    with pytest.raises(
        LayoutError, match="no stage can begin at layer 5: layer 5 reads the KV cache of layer 3"
    ) as error:
        planned(shared, 2, 3, 5)
    assert error.value.hint == "nearest: --layer-partition 2,1,7; stages can begin at layers 0-3"
    assert prove(planned(shared, 2, 1, 7)).findings == ()
    with pytest.raises(LayoutError, match="5 pipeline stages, and the layers can be divided over 4 at most"):
        planned(shared, stages=5)


def test_the_even_division_moves_before_the_layers_that_are_read(shared: Path) -> None:
    plan = planned(shared, stages=2)
    assert plan.stages == ((0, 3), (3, 10))
    (found,) = prove(plan).findings
    assert (found.code, found.severity) == ("layout-moved", "note")
    assert str(found.hint) == "--layer-partition 3,7 asks for the same"
    assert auto_partition(plan, "native") == (3, 7)


def test_a_partition_that_fits_the_memory_has_a_possible_cut(shared: Path) -> None:
    sizes = {n: [r.resident_bytes for r in prove(planned(shared, n, 10 - n)).ranks] for n in (1, 2, 3)}
    least = min(max(s) for s in sizes.values())
    fitting = {f"{n},{10 - n}" for n, s in sizes.items() if max(s) <= least}
    worst = max(sizes, key=lambda n: max(sizes[n]))
    (found,) = prove(planned(shared, worst, 10 - worst), capacity_bytes=least).findings
    assert any(f"--layer-partition {counts}, which fits" in str(found.hint) for counts in fitting)


def test_keys_of_a_layer_that_shares_are_left_unread_and_those_that_it_reads_are_missed(
    shared: Path, tmp_path: Path
) -> None:
    damaged = DamagedCheckpoint(Path(shutil.copytree(shared, tmp_path / "stored")))
    damaged.copy(r"layers\.3\.self_attn\.k_proj", "layers.9.self_attn.k_proj")
    proof = prove(planned(damaged.path, stages=1))
    assert proof.proven and [w.reason for w in proof.waivers] == ["keys and values of another layer are used"]
    damaged.drop(r"layers\.3\.self_attn\.v_proj")
    (found,) = prove(planned(damaged.path, stages=1)).findings
    assert (found.code, found.tensor) == ("tensor-missing", "model.layers.3.self_attn.v_proj.weight")


@pytest.mark.parametrize("shared_layers", [9, 10])
def test_a_type_without_keys_of_its_own_is_refused(shared_layers: int) -> None:
    with pytest.raises(ConfigError, match="num_kv_shared_layers leaves"):
        FAMILY.schema(FAMILY.describe(merged(SHARED, {"text_config": {"num_kv_shared_layers": shared_layers}})))
