"""Every public function and method, called with wrong arguments made from its signature: a typed error, or it works."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loadmaster
from loadmaster import LoadmasterError, ParallelLayout, Plan, ProvenPlan, build_plan, open_checkpoint, prove
from loadmaster.checkpoint import LocalStore
from tests.conftest import Tiny

WRONG: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "a fraction": lambda: 1.5,
    "NaN": lambda: math.nan,
    "a word": lambda: "nonsense",
    "no word": lambda: "",
    "a NUL": lambda: "a\0b",
    "bytes": lambda: b"{}",
    "a list": lambda: [object()],
    "a mapping": lambda: {9: object()},
    "an object": object,
    "below zero": lambda: -1,
    "zero": lambda: 0,
    "too large": lambda: 10**30,
    "too large to print": lambda: 10**5000,
    "a closed file": lambda: _closed_file(),
    "a type": lambda: int,
}
"""What is passed in place of each argument, one at a time."""

READ_ONLY = {
    "Checkpoint",
    "Division",
    "Explanation",
    "Finding",
    "Grid",
    "LoadReport",
    "LoadedRank",
    "NeededTensor",
    "ParamSpec",
    "Proof",
    "RankFigures",
    "RankPlan",
    "Rows",
    "Plan",
}
"""Values that the library gives, and nobody makes: their constructors check nothing."""


def _closed_file() -> object:
    with Path(__file__).open() as file:
        pass
    return file


class Sound:
    """Arguments that each call takes, by the call's name; and objects whose methods are called."""

    def __init__(self, path: Path, empty: Path) -> None:
        checkpoint = open_checkpoint(path)
        self.plan = build_plan(checkpoint, ParallelLayout(2))
        self.proven = prove(self.plan).require_proven()
        self.empty = empty
        self.of: dict[str, dict[str, Any]] = {
            "build_plan": {"checkpoint": checkpoint},
            "prove": {"plan": self.plan},
            "explain": {"plan": self.plan, "name": "norm.weight"},
            "open_checkpoint": {"path": path},
            "open_model": {"model": str(path)},
            "resolve_model": {"model": str(path)},
            "fetch_model": {"model": str(path)},
            "needed": {"plan": self.plan, "rank": 0},
            "shard_ranges": {"plan": self.plan, "ranks": [0]},
            "load_rank": {"plan": self.proven, "rank": 0},
            "Engine": {"plan": self.proven},
            "Receiver": {"plan": self.proven},
            "Tokenizer": {"model_path": path},
            "ParallelLayout": {},
            "SamplingParams": {},
        }

    def methods(self) -> Iterator[tuple[str, Callable[..., object], dict[str, Any]]]:
        """Yield the methods that take arguments: name, a call of it on a fresh object where that matters, what it takes."""
        plan, rank, layout = self.proven, self.proven.rank(1), ParallelLayout(2, 2)
        receiver = lambda: loadmaster.Receiver(plan, 1)  # noqa: E731
        yield "Plan.rank", plan.rank, {"rank": 0}
        yield "Plan.block", plan.block, {"layer": 0}
        yield "Plan.named", plan.named, {"param": "{block}.x", "layer": 0}
        yield "Plan.stage_of", plan.stage_of, {"layer": 0}
        yield "Plan.from_json", Plan.from_json, {"data": plan.to_json()}
        yield "RankPlan.only", rank.only, {"names": ()}
        yield "ParallelLayout.coordinate", layout.coordinate, {"rank": 0}
        yield "ParallelLayout.stage_ranks", layout.stage_ranks, {"pp_rank": 0}
        yield "ParallelLayout.axes", layout.axes, {"stage_slot": 0}
        yield "ParallelLayout.expert_slots", layout.expert_slots, {"num_experts": 4}
        yield "Receiver.offer", lambda **given: receiver().offer(**given), {"name": "model.norm.weight", "tensor": None}


@pytest.fixture(scope="module")
def sound(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tiny("llama"), tmp_path_factory.mktemp("empty"))


def untyped(call: Callable[..., object], given: dict[str, Any], what: str) -> Iterator[str]:
    """Call it: it may work; what it raises is an error of this package, with something to say. Yield what is not so."""
    try:
        made = call(**given)
    except LoadmasterError as error:
        if not 0 < len(str(error)) < 2000:
            yield f"{what}: a message of {len(str(error))} characters"
    except Exception as error:
        yield f"{what}: {type(error).__name__}: {error}"
    else:
        if hasattr(made, "close"):
            made.close()


def functions() -> list[str]:
    return [
        name
        for name in loadmaster.__all__
        if callable(value := getattr(loadmaster, name))
        and name not in READ_ONLY
        and value is not ProvenPlan
        and not (isinstance(value, type) and issubclass(value, BaseException))
    ]


def test_the_calls_that_are_tried_are_those_of_the_library(sound: Sound) -> None:
    assert set(functions()) == set(sound.of)


@pytest.mark.parametrize("name", functions())
def test_a_wrong_argument_is_a_typed_error(name: str, sound: Sound) -> None:
    call, given = getattr(loadmaster, name), sound.of[name]
    wrong = [
        said
        for parameter in inspect.signature(call).parameters
        for label, make in WRONG.items()
        for said in untyped(call, {**given, parameter: make()}, f"{name}({parameter}={label})")
    ]
    assert wrong == []


def test_a_wrong_argument_of_a_method_is_a_typed_error(sound: Sound) -> None:
    wrong = [
        said
        for name, call, given in sound.methods()
        for parameter in given
        for label, make in WRONG.items()
        for said in untyped(call, {**given, parameter: make()}, f"{name}({parameter}={label})")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["load_rank", "Receiver", "Engine"])
def test_an_unproven_plan_is_a_plan_error(name: str, sound: Sound) -> None:
    with pytest.raises(loadmaster.PlanError, match="was not proven"):
        getattr(loadmaster, name)(**{**sound.of[name], "plan": sound.plan})


@pytest.mark.parametrize("rank", [-1, 2, 9])
def test_a_rank_that_the_layout_lacks_is_named(rank: int, sound: Sound) -> None:
    for call in (loadmaster.load_rank, loadmaster.Receiver):
        with pytest.raises(loadmaster.ArgumentError, match=f"rank is {rank}, expected 0 to 1"):
            call(sound.proven, rank)
    with pytest.raises(loadmaster.ArgumentError, match=f"rank is {rank}"):
        sound.plan.rank(rank)


def test_an_empty_folder_and_a_missing_one_are_checkpoint_errors(sound: Sound) -> None:
    for path in (sound.empty, sound.empty / "nothing"):
        with pytest.raises(loadmaster.CheckpointError, match=str(path)):
            open_checkpoint(path)
    assert not loadmaster.Tokenizer(sound.empty).exists


def test_a_closed_store_is_a_load_error(sound: Sound) -> None:
    store = LocalStore(sound.proven.model_path)
    store.close()
    with pytest.raises(loadmaster.LoadError, match="is closed"):
        loadmaster.load_rank(sound.proven, 0, store=store)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dtype": "float16"}, "dtype is 'float16', a str, expected one of BF16, F16, F32"),
        ({"checkpoint": "folder"}, r"checkpoint is 'folder', a str, expected a Checkpoint, as open_checkpoint\(path\)"),
        ({"layout": 2}, "layout is 2, a int, expected a ParallelLayout"),
        ({"target": "sglang"}, "sglang"),
    ],
)
def test_what_build_plan_cannot_take_is_said(given: dict[str, Any], words: str, sound: Sound) -> None:
    with pytest.raises(LoadmasterError, match=words):
        build_plan(**{**sound.of["build_plan"], **given})


def test_a_device_that_does_not_exist_is_said(sound: Sound) -> None:
    for device in ("gpu", "meta", 7.5):
        with pytest.raises(loadmaster.ArgumentError, match=r"device|loading onto"):
            loadmaster.load_rank(sound.proven, 0, device=device)  # type: ignore[call-overload]


def test_json_that_is_no_plan_is_a_plan_error(sound: Sound) -> None:
    import orjson

    value = orjson.loads(sound.plan.to_json())
    damages = [{**value, key: wrong()} for key in value for wrong in WRONG.values() if key not in ("hash", "path")]
    damages += [
        {**value, "tensors": {**value["tensors"], key: column[:-1]}} for key, column in value["tensors"].items()
    ]
    for damaged in damages:
        try:
            data = orjson.dumps(damaged)
        except TypeError:
            continue  # not JSON at all
        assert list(untyped(Plan.from_json, {"data": data}, "from_json")) == []
