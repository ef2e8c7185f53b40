"""The cases as data: named once, of every family, and each defect can be done to its checkpoint."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from loadmaster.audit.case import ACCEPTED, UNJUDGED, Case
from loadmaster.audit.cases import CASES, find_cases
from loadmaster.audit.damage import KINDS
from loadmaster.audit.run import planned
from loadmaster.checkpoint import open_checkpoint
from loadmaster.findings import errors
from loadmaster.plan import build_plan, prove
from loadmaster.synth import PRESETS
from loadmaster.testing.damaged import DamagedCheckpoint

UNSEEN = {
    "qwen3/tied-by-config",  # the config is followed; the payload's verification finds it
    "llama-fp8-static/input-scale-missing",  # optional
    "mixtral-fp8-static/input-scale-missing",
    "mixtral-fp8-static/input-scales-differ",  # values alone
    "qwen3-moe-fp8/routers-unlisted",  # routers are in no format here, whatever the config says
}
"""Defects that the plan has nothing to say of."""

DAMAGED = [c for c in CASES if c.damage is not None]


def test_names_are_unique_and_begin_with_the_preset() -> None:
    assert [n for n, count in Counter(c.name for c in CASES).items() if count > 1] == []
    assert all(c.name.startswith(f"{c.preset}/") for c in CASES)


def test_every_preset_is_loaded_sound_and_every_family_is_damaged_too() -> None:
    assert {c.preset for c in CASES if c.damage is None} == set(PRESETS)
    assert {c.family for c in DAMAGED} == {c.family for c in CASES if c.damage is None}


def test_every_kind_of_defect_is_described_and_used() -> None:
    assert {c.damage.kind for c in DAMAGED if c.damage} == set(KINDS)


def test_what_vllm_accepts_is_said_of_presets_that_there_are() -> None:
    assert ACCEPTED.keys() | UNJUDGED.keys() <= PRESETS.keys()
    assert not {c.preset for c in DAMAGED} & UNJUDGED.keys()


def test_a_glob_chooses_by_name() -> None:
    assert find_cases("nothing*") == ()
    assert find_cases("*") == CASES
    assert {c.preset for c in find_cases("glm*/sound")} == {p for p in PRESETS if p.startswith("glm")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("case", DAMAGED, ids=lambda c: c.name)
def test_each_defect_can_be_done_and_the_planner_sees_it_or_not_for_a_reason(
    case: Case, written: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if case.checkpoint not in written:
        written[case.checkpoint] = tmp_path_factory.mktemp("sound") / "checkpoint"
        case.write(written[case.checkpoint])
    sound = build_plan(open_checkpoint(written[case.checkpoint]), case.layout)
    assert errors(prove(sound).findings) == ()
    path = Path(shutil.copytree(written[case.checkpoint], tmp_path / "damaged"))
    assert case.damage
    assert case.damage.change(DamagedCheckpoint(path))  # it names what it concerns
    if case.damage.changes:
        assert planned(path, case.layout) or case.name.partition("@")[0] in UNSEEN
