"""``loadmaster diff`` as a process: its exit codes are those of other programs that compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadmaster.cli.main import main
from tests.cli.test_plan import run
from tests.conftest import Tiny


def code(*args: object) -> int:
    return main(["diff", *map(str, args)])


def test_equal_is_0_different_is_1(tiny: Tiny, tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(tiny("qwen3"), tiny_copy("qwen3")) == 0
    assert code(tiny("qwen3"), tiny("smollm2"), "--json") == 1
    assert code(tiny("qwen3"), "-pp", 2, "--to", "-pp 2") == 0
    capsys.readouterr()
    assert code(tiny("qwen3"), "--from", "-pp 4", "--to=-pp 2 -tp 2", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["before"]["pipeline_parallel_size"] == 4
    assert found["after"]["tensor_parallel_size"] == 2
    assert found["ranks"][0]["needed_bytes"] > found["ranks"][0]["kept_bytes"] > 0


def test_what_cannot_be_compared_is_2(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(tiny("qwen3"), "/nowhere") == 2
    assert "/nowhere does not exist" in capsys.readouterr().err
    assert code(tiny("qwen3"), "--to", "-tp 3") == 2
    assert "--to '-tp 3': " in capsys.readouterr().err
    for wrong in ((), ("--from", "-pp 2"), (tiny("qwen3"), "--to", "-pp 2"), ("--to", "-pt 2"), ("--to", "'")):
        assert code(tiny("qwen3"), *wrong) == 2
        assert capsys.readouterr().out == ""


def test_a_process_prints_one_object(tiny: Tiny) -> None:
    done = run("diff", tiny("qwen3"), tiny("smollm2"), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["equal"] is False


def test_a_page_is_written_of_checkpoints_and_of_layouts(tiny: Tiny, tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    assert code(tiny("qwen3"), tiny("smollm2"), "--html", page) == 1
    assert '<p class="verdict">Different</p>' in page.read_text()
    assert code(tiny("qwen3"), "--to=-pp 2", "--html", page) == 1
    assert "pipeline 1 × tensor 1 → pipeline 2 × tensor 1" in page.read_text()
