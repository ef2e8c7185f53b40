"""The notes on each version of vLLM: each explains findings of the published audit, and each is complete."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from loadmaster.audit.notes import Note, further_cases, read_again, read_changes, read_notes
from loadmaster.audit.places import GONE
from loadmaster.audit.recorded import read_recorded
from loadmaster.audit.verdict import Verdict

AUDITS = Path(__file__).parents[3] / "docs" / "audits"
RECORDED = {path.stem: read_recorded(path) for path in sorted(AUDITS.glob("vllm-*.json"))}
NOTES = [(stem, note) for stem, recorded in RECORDED.items() for note in read_notes(stem, recorded.version)]


def test_each_published_audit_has_notes() -> None:
    assert {stem for stem, _ in NOTES} == RECORDED.keys() == {"vllm-0.32", "vllm-0.33"}


@pytest.mark.parametrize(("stem", "note"), NOTES, ids=lambda v: v if isinstance(v, str) else v.title)
def test_a_note_explains_a_finding_and_its_patterns_are_of_cases_that_were_run(stem: str, note: Note) -> None:
    rows = RECORDED[stem].rows
    assert any(note.fits(r["name"], r["verdict"]) for r in rows)
    assert [glob for glob in note.cases if not any(fnmatchcase(r["name"], glob) for r in rows)] == []


@pytest.mark.parametrize(("stem", "note"), NOTES, ids=lambda v: v if isinstance(v, str) else v.title)
def test_a_note_says_why_where_whom_it_affects_and_what_test_is_missing(stem: str, note: Note) -> None:
    assert all((note.title, note.cases, note.cause, note.affected, note.test))
    places = RECORDED[stem].places
    assert [place for place in note.where if ".py" not in place or places[place] == GONE] == []
    for text in (note.title, note.cause, note.affected, note.test):
        assert text.count("`") % 2 == 0, text


def test_notes_of_another_version_hold_where_the_code_is_the_same_or_was_read_again() -> None:
    before, after = RECORDED["vllm-0.32"].places, RECORDED["vllm-0.33"].places
    inherited = [note for stem, note in NOTES if stem == "vllm-0.32"]
    changed = {place for note in inherited for place in note.where if before[place] != after[place]}
    assert changed == set(read_again("vllm-0.33"))


def test_further_cases_are_those_of_an_inherited_note() -> None:
    titles = {note.title for note in read_notes("vllm-0.32", "0.32.0")}
    assert further_cases("vllm-0.33").keys() <= titles and not further_cases("vllm-0.32")


def test_a_note_is_for_one_verdict_alone() -> None:
    note = read_notes("vllm-0.32", "0.32.0")[0]
    name = note.cases[0].replace("*", "deepseek-v3", 1).rstrip("*")
    assert note.fits(name, note.verdict.value)
    assert not any(note.fits(name, v.value) for v in Verdict if v is not note.verdict)


def test_notes_on_changes_are_of_two_versions() -> None:
    assert read_changes("vllm-0.33", "0.31.0", "0.33.0") == read_changes("vllm-0.32", "0.31.0", "0.32.0") == ()
