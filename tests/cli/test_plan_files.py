"""``plan`` with a lock, and with findings as files: they are there whether the plan is proven or not."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadmaster.cli.main import main
from tests.conftest import Tiny


def plan(*args: object) -> int:
    return main(["plan", *map(str, args)])


def test_a_lock_holds_until_an_option_changes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan(tiny("qwen3"), "-pp", 2, "--write-lock") == 0
    assert (tmp_path / "loadmaster.lock").exists()
    assert plan(tiny("qwen3"), "-pp", 2, "--locked") == 0
    capsys.readouterr()
    assert plan(tiny("qwen3"), "-pp", 4, "--locked", "loadmaster.lock", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["code"] for f in found["findings"]] == ["lock-options"]
    assert plan(tiny("qwen3"), "--locked", "nothing.lock") == 1
    assert plan(tiny("qwen3"), "--locked", "--write-lock") == 2


def test_no_lock_is_written_of_a_plan_that_is_not_proven(tiny: Tiny, tmp_path: Path) -> None:
    assert plan(tiny("qwen3"), "--device-memory", "1MiB", "--write-lock", tmp_path / "lock") == 1
    assert not (tmp_path / "lock").exists()


def test_findings_are_written_of_a_proof_and_of_a_failure(tiny: Tiny, tmp_path: Path) -> None:
    sarif, junit = tmp_path / "plan.sarif", tmp_path / "plan.xml"
    files = ("--sarif", sarif, "--junit", junit)
    assert plan(tiny("qwen3"), *files) == 0
    assert json.loads(sarif.read_text())["runs"][0]["results"] == []
    skipped = [
        case.get("classname") for case in ElementTree.parse(junit).iter("testcase") if case.find("skipped") is not None
    ]
    assert skipped == ["Payload", "Lock"]
    assert plan(tiny("qwen3"), "-tp", 3, *files) == 1
    (result,) = json.loads(sarif.read_text())["runs"][0]["results"]
    assert result["ruleId"] == "layout-indivisible"
    assert ElementTree.parse(junit).getroot().get("failures") == "1"


def test_a_page_is_written_whether_the_plan_is_proven_or_not(tiny: Tiny, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    assert plan(tiny("qwen3"), "-pp", 2, "--html", page) == 0
    assert "Proven: " in page.read_text()
    assert plan(tiny("qwen3"), "--device-memory", "1MiB", "--html", page) == 1
    assert "Not proven: 1 error(s)" in page.read_text()
    assert "of 1.0 MiB" in page.read_text()
    assert plan(tiny("qwen3"), "--device-memory", "8GiB", "--html", page) == 0
    assert "tokens fit at a time" in page.read_text()
