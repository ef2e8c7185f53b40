"""Towers on the first stage: what is stored outside the language model is planned, counted, loaded whole, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.cli.main import main
from loadmaster.engine import refuse_plan
from loadmaster.errors import ArgumentError, LayoutError, UnsupportedError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, write_tiny
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.conftest import Tiny

TOWER = {
    "model.visual.patch_embed.proj.weight": torch.arange(2 * 3 * 2 * 4 * 4, dtype=torch.float32)
    .reshape(2, 3, 2, 4, 4)
    .bfloat16(),
    "model.visual.pos_embed.weight": torch.linspace(0, 1, 21).reshape(3, 7),
    "model.visual.window_index": torch.tensor([3, 1, 2]),
}
"""Five dims, a dtype other than the model's, and integers: 192 × 2 + 21 × 4 + 3 × 8 = 492 bytes."""
BYTES = 492


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sighted") / "model"
    write_tiny(PRESETS["qwen3.8"], path)
    DamagedCheckpoint(path).drop(r"^model\.visual\.").each(
        r"^model\.language_model\.norm\.weight$", lambda n, t: {n: t, **TOWER}
    )
    return path


def plan(path: Path, *sizes: int, multimodal: bool = True, dtype: str | None = None) -> Plan:
    return build_plan(open_checkpoint(path), ParallelLayout(*sizes, multimodal=multimodal), dtype=dtype)


def test_without_the_option_a_tower_is_left_unread(sighted: Path) -> None:
    proof = prove(plan(sighted, multimodal=False))
    assert proof.findings == ()
    assert [(w.num_tensors, w.num_bytes) for w in proof.plan.waivers if "language" in w.reason] == [(3, BYTES)]


def test_every_rank_of_the_first_stage_holds_all_of_it_and_no_other_rank_any(sighted: Path) -> None:
    with_towers, without = plan(sighted, 2, 2), plan(sighted, 2, 2, multimodal=False)
    proof = prove(with_towers)
    assert proof.proven
    more = [with_towers.rank(r).resident_bytes - without.rank(r).resident_bytes for r in range(4)]
    assert more == [BYTES, BYTES, 0, 0]
    for rank in range(4):
        tensors = load_rank(proof.require_proven(), rank, num_readers=1).tensors
        held = {name: t for name, t in tensors.items() if name in TOWER}
        assert held.keys() == (TOWER.keys() if rank < 2 else set())
        assert all(torch.equal(t, TOWER[name]) and t.dtype == TOWER[name].dtype for name, t in held.items())


def test_the_one_finding_says_that_no_table_checked_it(sighted: Path) -> None:
    [finding] = prove(plan(sighted)).findings
    assert (finding.code, finding.severity) == ("tower-unchecked", "warning")
    assert "(model.visual: 3 tensors, 492 bytes)" in finding.message


def test_another_dtype_of_the_model_leaves_a_tower_as_it_is_stored(sighted: Path) -> None:
    specs = {s.name: s.dtype for s in plan(sighted, dtype="F32").rank(0).specs if s.name in TOWER}
    assert [specs[name] for name in TOWER] == ["BF16", "F32", "I64"]


def test_a_plan_that_was_saved_has_its_towers(sighted: Path) -> None:
    made = plan(sighted, 2)
    again = Plan.from_json(made.to_json())
    assert (again.layout.multimodal, again.hash) == (True, made.hash)
    assert made.hash != plan(sighted, 2, multimodal=False).hash
    assert "multimodal" not in ParallelLayout().as_json()


def test_a_name_that_is_in_no_tower_is_still_unexpected(sighted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sighted, tmp_path / "copy"))
    DamagedCheckpoint(copy).rename(r"^model\.visual\.pos_embed", "model.optical.pos_embed")
    errors = [f for f in prove(plan(copy)).findings if f.severity == "error"]
    assert [(f.code, f.tensor) for f in errors] == [("tensor-unexpected", "model.optical.pos_embed.weight")]


def test_a_model_without_a_tower_is_refused(sighted: Path, tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sighted, tmp_path / "copy"))
    DamagedCheckpoint(copy).drop(r"^model\.visual\.")
    for path in (copy, tiny("qwen3")):
        with pytest.raises(LayoutError) as error:
            plan(path)
        assert error.value.code == "tower-missing"


def test_another_engine_and_another_value_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UnsupportedError, match=r"towers are not described for vllm-0\.33"):
        build_plan(open_checkpoint(tiny("qwen3")), ParallelLayout(multimodal=True), target="vllm-0.33")
    with pytest.raises(ArgumentError, match="multimodal is 1, a int, expected True or False"):
        ParallelLayout(multimodal=1)  # type: ignore[arg-type]


def test_running_a_model_with_its_tower_is_refused(tiny_copy: Tiny) -> None:
    path = tiny_copy("gemma-3")
    DamagedCheckpoint(path).each(
        r"^(model\.)?norm\.weight$", lambda n, t: {n: t, "vision_tower.norm.weight": t.clone()}
    )
    refuse_plan(plan(path, multimodal=False))
    with pytest.raises(UnsupportedError, match="running with vision and audio is not supported yet"):
        refuse_plan(plan(path))


def test_the_command_plans_towers(sighted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(sighted), "--multimodal", "-pp", "2"]) == 0
    assert "tower-unchecked" in capsys.readouterr().out


def test_a_number_without_dims_in_a_tower_is_refused_by_name(sighted: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sighted, tmp_path / "model")
    scale = "model.visual.logit_scale"
    DamagedCheckpoint(path).each(r"^model\.visual\.window_index$", lambda n, t: {n: t, scale: torch.tensor(2.0)})
    with pytest.raises(UnsupportedError, match=f"{scale} is a number without dims"):
        plan(path)
    assert plan(path, multimodal=False).findings == ()


def test_four_towers_are_named_and_more_are_hinted_at(tmp_path: Path) -> None:
    write_tiny(PRESETS["gemma-4-e2b"], tmp_path / "gemma")
    towers = ["audio_tower", "embed_audio", "embed_vision", "multi_modal_projector", "vision_tower"]
    for number, more in ((4, ""), (5, ", …")):
        path = shutil.copytree(tmp_path / "gemma", tmp_path / str(number))
        parts = {f"{root}.weight": torch.zeros(2) for root in towers[:number]}
        damaged = DamagedCheckpoint(path).drop(r"(model\.)?(vision|audio|embed_vision|embed_audio|multi_modal).*")
        damaged.each(r".*language_model\.norm\.weight$", lambda n, t, parts=parts: {n: t, **parts})
        (found,) = (f for f in prove(plan(path)).findings if f.code == "tower-unchecked")
        assert f"({', '.join(towers[:4])}{more}: {number} tensors, {8 * number} bytes)" in found.message
