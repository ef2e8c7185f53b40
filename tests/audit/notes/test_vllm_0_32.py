"""The notes on vLLM 0.32: each explains findings of the kept audit, and each is complete."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from loadmaster.audit.notes import Note, read_notes
from loadmaster.audit.verdict import Verdict

AUDIT = json.loads((Path(__file__).parents[3] / "docs" / "audits" / "vllm-0.32.json").read_bytes())
NOTES = read_notes("vllm-0.32", AUDIT["versions"]["vllm"].split("+")[0])


@pytest.mark.parametrize("note", NOTES, ids=lambda n: n.title)
def test_a_note_explains_a_finding_and_its_patterns_are_of_cases_that_were_run(note: Note) -> None:
    assert any(note.fits(r["name"], r["verdict"]) for r in AUDIT["results"])
    names = [r["name"] for r in AUDIT["results"]]
    assert [glob for glob in note.cases if not any(fnmatchcase(name, glob) for name in names)] == []


@pytest.mark.parametrize("note", NOTES, ids=lambda n: n.title)
def test_a_note_says_why_where_whom_it_affects_and_what_test_is_missing(note: Note) -> None:
    assert all((note.title, note.cases, note.cause, note.affected, note.test))
    assert all(".py" in place for place in note.where)
    for text in (note.title, note.cause, note.affected, note.test):
        assert text.count("`") % 2 == 0, text


def test_a_note_is_for_one_verdict_alone() -> None:
    note = NOTES[0]
    name = note.cases[0].replace("*", "deepseek-v3", 1).rstrip("*")
    assert note.fits(name, note.verdict.value)
    assert not any(note.fits(name, v.value) for v in Verdict if v is not note.verdict)
