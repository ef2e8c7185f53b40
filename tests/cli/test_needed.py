"""``plan --rank R --list``: the library's list, as lines and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.cli.main import main
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import NeededTensor, build_plan, needed
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def path(tiny: Tiny) -> Path:
    return tiny("llama")


def expected(path: Path) -> dict[str, NeededTensor]:
    return needed(build_plan(open_checkpoint(path), ParallelLayout(1, 2)), 1)


def test_the_lines_name_shard_tensor_and_bytes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(path), "-tp", "2", "--rank", "1", "--list"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = {name: (shard, [tuple(map(int, r.split("-"))) for r in ranges.split(",")]) for shard, name, ranges in lines}
    wanted = expected(path)
    assert found == {t.name: (t.shard, [(start, end - 1) for start, end in t.ranges]) for t in wanted.values()}


def test_json_has_the_list_beside_the_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(path), "-tp", "2", "--rank", "1", "--list", "--json"]) == 0
    found, wanted = json.loads(capsys.readouterr().out), expected(path)
    assert found["proven"]
    assert (found["needed"]["rank"], found["needed"]["bytes"]) == (1, found["ranks"][1]["fetched_bytes"])
    assert [t["name"] for t in found["needed"]["tensors"]] == list(wanted)
    first = found["needed"]["tensors"][0]
    tensor = wanted[first["name"]]
    assert (first["shape"], first["start"], first["bytes"]) == (list(tensor.shape), tensor.start, tensor.num_bytes)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--list"], "of which rank?"),
        (["--rank", "0"], "--list, which is missing"),
        (["--list", "--rank", "2", "-tp", "2"], "the layout has ranks 0 to 1"),
    ],
)
def test_what_cannot_be_listed_is_a_usage_error(
    args: list[str], says: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(path), *args]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_that_is_not_proven_lists_nothing(tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_copy("qwen3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
    assert main(["plan", str(path), "--rank", "0", "--list"]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert "shape-mismatch" in told.err
