"""Files: what a missing, short, forgotten or hollow shard takes away is said once, with the ranks that wait for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.plan import build_plan
from tests.failures.conftest import Sound
from tests.failures.damaged import INDEX, DamagedCheckpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 5360000000\n"
GLM, LLAMA = "glm-5.1-fp8", "llama"


def shard(i: int) -> str:
    return f"model-{i:05d}-of-00006.safetensors"


def held(checkpoint: DamagedCheckpoint, file: str) -> set[str]:
    """Return the layers that a shard holds tensors of, the draft's left out."""
    index = json.loads((checkpoint.path / INDEX).read_text())["weight_map"]
    return {n.split(".")[2] for n, f in index.items() if f == file and ".layers." in n} - {"4"}


def take(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def point(path: Path) -> None:
    path.write_bytes(POINTER)


def scramble(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html>" * 99)


HOLLOW = {"shard-missing": take, "file-empty": empty, "file-lfs-pointer": point, "header-invalid": scramble}


@pytest.mark.parametrize("preset", [GLM, LLAMA])
@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("code", HOLLOW)
def test_a_shard_that_is_not_there_or_hollow_is_one_finding_and_its_tensors_are_not_told_one_by_one(
    code: str, indexed: bool, preset: str, sound: Sound
) -> None:
    damaged = sound(preset, 6)
    layers = held(damaged, shard(3))
    HOLLOW[code](damaged.path / shard(3))
    if not indexed:
        (damaged.path / INDEX).unlink()
    found = damaged.only(4)
    assert (found.code, found.severity, found.file) == (code, "error", shard(3))
    assert {str(r) for r in found.ranks} == layers
    assert "lost with it: " in found.message


def test_a_shard_of_the_draft_alone_touches_no_rank_unless_it_is_asked_for(sound: Sound) -> None:
    damaged = sound(GLM, 6)
    (damaged.path / shard(6)).unlink()
    assert damaged.only(2).ranks == ()
    assert damaged.only(2, drafts=1).ranks == (1,)


def test_two_missing_shards_are_a_finding_each_and_a_clone_without_lfs_is_one_in_all(sound: Sound) -> None:
    damaged = sound(GLM, 6)
    for i in (2, 5):
        (damaged.path / shard(i)).unlink()
    assert [(f.code, f.file) for f in damaged.prove(2).findings] == [
        ("shard-missing", shard(2)),
        ("shard-missing", shard(5)),
    ]
    damaged = sound(LLAMA, 6)
    for i in range(1, 7):
        (damaged.path / shard(i)).write_bytes(POINTER)
    found = damaged.only(2)
    assert (found.code, found.ranks) == ("file-lfs-pointer", (0, 1))
    assert "git lfs pull" in str(found.hint)


@pytest.mark.parametrize("preset", [GLM, LLAMA])
@pytest.mark.parametrize(
    ("change", "code"), [(lambda b: b[:-1], "file-truncated"), (lambda b: b + b"x", "file-overlong")]
)
def test_a_shard_of_another_length_than_its_header_says_is_one_finding(
    change: Callable[[bytes], bytes], code: str, preset: str, sound: Sound
) -> None:
    damaged = sound(preset, 6)
    (damaged.path / shard(4)).write_bytes(change((damaged.path / shard(4)).read_bytes()))
    found = damaged.only(2)
    assert (found.code, found.file) == (code, shard(4))


@pytest.mark.parametrize("preset", [GLM, LLAMA])
def test_a_stale_index_is_one_finding_whether_it_forgets_a_shard_or_a_tensor_or_invents_one(
    preset: str, sound: Sound
) -> None:
    damaged = sound(preset, 6)
    index = damaged.path / INDEX
    weight_map = json.loads(index.read_text())["weight_map"]
    name = next(n for n, f in weight_map.items() if f == shard(3) and n.endswith("weight"))

    index.write_text(json.dumps({"weight_map": {n: f for n, f in weight_map.items() if f != shard(3)}}))
    forgotten = damaged.only(4)
    assert (forgotten.code, forgotten.severity, forgotten.file) == ("shard-unindexed", "error", shard(3))
    assert forgotten.ranks

    index.write_text(json.dumps({"weight_map": {n: f for n, f in weight_map.items() if n != name}}))
    assert (damaged.only(4).code, damaged.only(4).tensor) == ("index-disagrees", name)

    damaged.drop(f"^{name}$")
    index.write_text(json.dumps({"weight_map": weight_map}))
    gone = damaged.only(4)
    assert (gone.code, gone.tensor) == ("index-disagrees", name)
    assert len(gone.ranks) == 1


def test_the_same_tensor_in_two_shards_is_one_finding_that_names_both_files(sound: Sound) -> None:
    damaged = sound(LLAMA, 6)
    (damaged.path / "model-00007-of-00006.safetensors").write_bytes((damaged.path / shard(2)).read_bytes())
    (stray,) = damaged.prove(2).findings
    assert (stray.code, stray.severity) == ("shard-stray", "warning")
    (damaged.path / INDEX).unlink()
    found = damaged.only(2)
    assert (found.code, found.file) == ("tensor-duplicate", "model-00007-of-00006.safetensors")
    assert shard(2) in found.message


@pytest.mark.parametrize(("content", "code"), [(POINTER, "file-lfs-pointer"), (b"", "file-empty")])
def test_an_index_that_is_hollow_is_the_one_finding_and_the_shards_are_read_without_it(
    content: bytes, code: str, sound: Sound
) -> None:
    damaged = sound(GLM, 6)
    (damaged.path / INDEX).write_bytes(content)
    assert (damaged.only(2).code, damaged.only(2).file) == (code, INDEX)


@pytest.mark.parametrize(("content", "code"), [(POINTER, "file-lfs-pointer"), (b"", "file-empty")])
def test_a_config_that_is_hollow_is_told_for_what_it_is(content: bytes, code: str, sound: Sound) -> None:
    damaged = sound(LLAMA, 2)
    (damaged.path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        build_plan(open_checkpoint(damaged.path))
    assert [(f.code, f.file) for f in refused.value.findings] == [(code, "config.json")]


def test_what_is_wrong_with_files_is_told_beside_a_layout_or_config_that_cannot_be(sound: Sound) -> None:
    damaged = sound(LLAMA, 6)
    (damaged.path / shard(3)).unlink()
    with pytest.raises(LayoutError) as layout:
        damaged.prove(9)
    assert [f.code for f in layout.value.findings] == ["shard-missing", "layout-stages"]
    damaged.config(hidden_size="128")
    with pytest.raises(ConfigError) as config:
        damaged.prove(2)
    assert [f.code for f in config.value.findings] == ["shard-missing", "config-invalid"]
