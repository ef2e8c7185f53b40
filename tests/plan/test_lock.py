"""A lock names every input of a plan, and says which one changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import PlanError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, WaiverRequest, build_plan
from loadmaster.plan.lock import Lock, check_lock, lock_of
from tests.conftest import Tiny


def plan(path: Path, layout: ParallelLayout | None = None, **more: object) -> Plan:
    return build_plan(open_checkpoint(path), layout or ParallelLayout(2), **more)  # type: ignore[arg-type]


def differing(locked: Plan, today: Plan) -> list[tuple[str, str]]:
    return [(f.code, f.summary) for f in check_lock(lock_of(locked, "1"), lock_of(today, "1"))]


def test_a_lock_is_read_back_and_holds_no_path(tiny: Tiny, tmp_path: Path) -> None:
    lock = lock_of(plan(tiny("glm-5.1-fp8")), "0.1.0")
    assert Lock.from_json(lock.to_json()) == lock
    moved = Path(shutil.copytree(tiny("glm-5.1-fp8"), tmp_path / "elsewhere"))
    assert lock_of(plan(moved), "0.1.0").to_json() == lock.to_json()
    assert str(tiny("glm-5.1-fp8")) not in lock.to_json()
    assert len(json.loads(lock.to_json())["shards"]) == 4


def test_each_option_that_differs_is_named(tiny: Tiny) -> None:
    path = tiny("qwen3")
    base = plan(path)
    assert differing(base, plan(path)) == []
    assert differing(base, plan(path, ParallelLayout(4))) == [
        ("lock-options", "pipeline_parallel_size is 4, locked is 2")
    ]
    assert differing(base, plan(path, target="vllm-0.32")) == [
        ("lock-options", 'target is "vllm-0.32", locked is "native"')
    ]
    assert differing(base, plan(path, dtype="F32")) == [("lock-options", 'dtype is "F32", locked is null')]
    waived = plan(path, waive=(WaiverRequest("x.*", "why"),))
    assert differing(base, waived) == [("lock-options", 'waive is [["x.*", "why"]], locked is []')]


def test_a_changed_header_a_lost_shard_and_a_changed_config_are_named(tiny: Tiny, tiny_copy: Tiny) -> None:
    path, base = tiny_copy("glm-5.1-fp8"), plan(tiny("glm-5.1-fp8"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"rope_theta": 5}))
    assert differing(base, plan(path)) == [("lock-config", "config.json: it is not the one that was locked")]
    shard = path / "model-00003-of-00004.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"BF16", b"F16 ", 1) if b"BF16" in data else data + b" ")
    codes = dict(differing(base, plan(path)))
    assert codes.keys() == {"lock-shard", "lock-config"}
    assert codes["lock-shard"].startswith("model-00003-of-00004.safetensors: ")
    (path / "model-00004-of-00004.safetensors").unlink()
    assert ("lock-shard", "model-00004-of-00004.safetensors: it is in the lock, and was not read") in differing(
        base, plan(path)
    )


def test_another_plan_of_the_same_inputs_is_the_versions_doing(tiny: Tiny) -> None:
    lock = lock_of(plan(tiny("qwen3")), "0.1.0")
    (found,) = check_lock(replace(lock, plan_hash="0" * 64), replace(lock, version="0.2.0"))
    assert (found.code, found.severity) == ("lock-version", "error")


def test_the_hubs_commit_is_compared_where_both_are_known(tiny: Tiny) -> None:
    lock = replace(lock_of(plan(tiny("qwen3")), "0.1.0"), model="owner/name", commit="1" * 40)
    assert Lock.from_json(lock.to_json()) == lock
    assert check_lock(lock, replace(lock, model=None, commit=None)) == ()  # a copy in a folder
    (found,) = check_lock(lock, replace(lock, commit="2" * 40))
    assert found.code == "lock-commit"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"lock_version": 99}', '{"lock_version": 1, "shards": {"a": 1}, "options": {}}']
)
def test_what_is_not_a_lock_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a lock") as error:
        Lock.from_json(text)
    assert error.value.code == "lock-invalid"
