"""What loads takes a proven plan: any other is refused with its findings, and nothing is handed out half written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.engine import Engine
from loadmaster.errors import LoadError, PlanError
from loadmaster.loader import Receiver, host, load_rank, load_ranks
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, ProvenPlan, build_plan, prove
from loadmaster.testing.damaged import DamagedCheckpoint
from tests.conftest import Tiny

O_PROJ = "model.layers.1.self_attn.o_proj.weight"
TAKERS: dict[str, Callable[[Any], object]] = {
    "load_rank": lambda plan: load_rank(plan, 0),
    "load_ranks": lambda plan: load_ranks(plan, {0: "cuda:0"}),
    "Receiver": lambda plan: Receiver(plan, 0),
    "Engine": lambda plan: Engine(plan),
}
"""Everything that carries a plan out."""


def without_a_shard(path: Path) -> None:
    next(path.glob("*-00002-of-*.safetensors")).unlink()


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a renamed tensor": (
        lambda path: DamagedCheckpoint(path).rename(O_PROJ, O_PROJ.replace("o_proj", "out_proj")),
        "o_proj",
    ),
    "a deleted shard": (without_a_shard, "shard-missing"),
    "a wrong hidden_size": (lambda path: DamagedCheckpoint(path).config(hidden_size=512), "shape-mismatch"),
}


@pytest.fixture(params=DEFECTS)
def defective(request: pytest.FixtureRequest, tiny_copy: Tiny) -> Iterator[tuple[Plan, str]]:
    """A plan that was built of a defective checkpoint, and a word that its refusal must have."""
    damage, word = DEFECTS[request.param]
    path = tiny_copy("llama")
    damage(path)
    yield build_plan(open_checkpoint(path), ParallelLayout(2)), word


@pytest.mark.parametrize("taker", TAKERS)
def test_a_plan_with_errors_is_refused_with_its_findings(taker: str, defective: tuple[Plan, str]) -> None:
    plan, word = defective
    with pytest.raises(PlanError, match="the plan is not proven") as refused:
        TAKERS[taker](plan)
    assert word in str(refused.value)
    assert refused.value.findings == prove(plan).findings != ()
    assert "allow_unproven=True" in str(refused.value.hint)


@pytest.mark.parametrize("taker", TAKERS)
def test_a_sound_plan_that_nobody_proved_is_refused_too(taker: str, tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("llama")), ParallelLayout(2))
    with pytest.raises(PlanError, match="the plan was not proven") as refused:
        TAKERS[taker](plan)
    assert "prove(plan).require_proven()" in str(refused.value.hint)


def test_a_proof_that_fails_gives_no_proven_plan(defective: tuple[Plan, str]) -> None:
    plan, word = defective
    with pytest.raises(PlanError, match=word) as refused:
        prove(plan).require_proven()
    assert refused.value.proof is not None


def test_a_capacity_that_is_too_small_is_no_proof(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("llama")))
    with pytest.raises(PlanError, match="memory-capacity"):
        prove(plan, capacity_bytes=1).require_proven()


def test_a_proven_plan_is_the_plan_and_cannot_be_made_otherwise(tiny: Tiny) -> None:
    plan = build_plan(open_checkpoint(tiny("llama")), ParallelLayout(2))
    proven = prove(plan).require_proven()
    assert type(proven) is ProvenPlan and proven == plan and vars(proven) == vars(plan)
    for make in (
        lambda: dataclasses.replace(proven, stages=((0, 1), (1, 2))),
        lambda: ProvenPlan(**{f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}),
    ):
        with pytest.raises(TypeError, match="not made but proven"):
            make()
    assert not isinstance(Plan.from_json(proven.to_json()), ProvenPlan)  # what comes from elsewhere is proven anew


def test_an_incomplete_model_is_loaded_only_where_that_is_asked_for_by_name(tiny_copy: Tiny) -> None:
    path = tiny_copy("llama")
    DamagedCheckpoint(path).rename(O_PROJ, O_PROJ.replace("o_proj", "out_proj"))
    plan = build_plan(open_checkpoint(path))
    loaded = load_rank(plan, 0, allow_unproven=True)
    assert "layers.0.self_attn.o_proj.weight" in loaded.tensors
    assert "layers.1.self_attn.o_proj.weight" not in loaded.tensors
    assert Receiver(plan, 0, allow_unproven=True).held_bytes == 0


# At the end of a load -----------------------------------------------------------------------------------------------


@pytest.fixture
def proven(tiny: Tiny) -> ProvenPlan:
    return prove(build_plan(open_checkpoint(tiny("glm-5.1-fp8")))).require_proven()


@pytest.mark.parametrize("left_out", [0, -1])
def test_a_read_that_was_not_carried_out_is_noticed(
    left_out: int, proven: ProvenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the loader itself, made on purpose: one task is lost."""

    def lossy(tasks: Iterator[Any], num_readers: int) -> None:
        every = list(tasks)
        del every[left_out]
        carry_out(iter(every), num_readers)

    carry_out = host.run_tasks
    monkeypatch.setattr(host, "run_tasks", lossy)
    with pytest.raises(LoadError, match=r"loading is incomplete: [\d,]+ of [\d,]+ bytes of the plan were done"):
        load_rank(proven, 0)


def test_a_parameter_that_nothing_fills_is_named(proven: ProvenPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's batches lack one, as a fault in deriving them would have it."""
    rank = proven.rank(0)
    lost = next(b for b in rank.groups if rank.specs[b.params[0]].name == "norm.weight")
    fewer = dataclasses.replace(rank, groups=tuple(b for b in rank.groups if b is not lost))
    monkeypatch.setattr(Plan, "rank", lambda self, number: fewer)
    with pytest.raises(LoadError, match=r"rank 0: 0 of 640 bytes of norm\.weight are written"):
        load_rank(proven, 0)


def test_a_parameter_that_does_not_exist_is_named(proven: ProvenPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(host.Arena):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            del self.tensors["norm.weight"]

    monkeypatch.setattr(host, "Arena", Forgetful)
    with pytest.raises(LoadError, match=r"rank 0: norm\.weight does not exist"):
        load_rank(proven, 0)


def test_a_receiver_counts_what_was_written(proven: ProvenPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.loader.reference import read_all

    receiver = Receiver(proven)
    for name, tensor in read_all(proven.model_path).items():
        receiver.offer(name, tensor)
    monkeypatch.setattr(receiver, "_done_bytes", 0)
    with pytest.raises(LoadError, match="loading is incomplete"):
        receiver.finish()


@pytest.mark.slow
def test_a_type_checker_sees_a_plan_that_was_not_proven(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="needs mypy, which the check group installs")
    script = tmp_path / "user.py"
    script.write_text(
        "from loadmaster import build_plan, load_rank, open_checkpoint, prove, Receiver, Engine\n"
        "plan = build_plan(open_checkpoint('x'))\n"
        "load_rank(prove(plan).require_proven(), 0)\n"
        "load_rank(plan, 0, allow_unproven=True)\n"
        "load_rank(plan, 0)\n"
        "Receiver(plan)\n"
        "Engine(plan)\n"
    )
    out, _, _ = api.run(["--strict", "--follow-imports=silent", "--output=json", str(script)])
    lines = sorted(json.loads(line)["line"] for line in out.splitlines() if line.startswith("{"))
    assert lines == [5, 6, 7], out
