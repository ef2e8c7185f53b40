"""What changed between two versions, on results small enough to judge by eye."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from loadmaster.audit.against import recorded_by
from loadmaster.audit.changes import Change, change_report, grouped, paired, short, title_of, write_changes
from loadmaster.audit.notes import ChangeNote
from loadmaster.audit.page import Block, Heading, Items, Table, Text, html, markdown
from loadmaster.audit.places import GONE, digest_places
from loadmaster.audit.recorded import Recorded, read_recorded
from loadmaster.audit.verdict import Verdict
from loadmaster.errors import UnsupportedError, UsageError

AUDITS = Path(__file__).parents[2] / "docs" / "audits"
LOADER, MOVED = "vllm/a.py: A.load_weights", "vllm/b.py: raise_it"


def row(name: str, verdict: Verdict, raised_in: str = "", kind: str | None = "missing") -> dict[str, Any]:
    auto = {"raised_in": raised_in, "loader": LOADER}
    return {
        **{
            "name": name,
            "kind": kind,
            "defect": kind,
            "verdict": verdict.value,
            "evidence": f"{verdict.value} | `seen`",
        },
        **{"auto": auto, "tracked": None, "family": "deepseek"},
    }


BEFORE = Recorded(
    {"vllm": "0.1.0+cpu", "device": "cpu"},
    [
        row("a/mended", Verdict.SILENT),
        row("a/worse", Verdict.LATE),
        row("a/same", Verdict.SILENT),
        row("a/new-place", Verdict.LATE, LOADER),
        row("a/unbuilt", Verdict.NOT_RUN, kind=None),
        row("a/dropped", Verdict.RIGHT, kind=None),
    ],
    {LOADER: "1", MOVED: GONE},
)
AFTER = Recorded(
    {"vllm": "0.2.0", "device": "cuda, pretended"},
    [
        row("a/mended", Verdict.CLEAR, MOVED),
        row("a/worse", Verdict.UNCLEAR),
        row("a/same", Verdict.SILENT),
        {**row("a/new-place", Verdict.LATE, MOVED), "evidence": "other words"},
        row("a/unbuilt", Verdict.RIGHT, kind=None),
    ],
    {LOADER: "2", MOVED: "3"},
)
NOTE = ChangeNote("It is refused", ("a/mend*",), (Verdict.SILENT,), (Verdict.CLEAR,), "why", (LOADER,), "whom", "test")


def headings(blocks: list[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, Heading)]


def table(blocks: list[Block], *titles: str) -> Table:
    return next(b for b in blocks if isinstance(b, Table) and b.titles == titles)


def test_cases_are_compared_by_their_names_and_by_the_harm_of_their_verdicts() -> None:
    changes, others = paired(BEFORE, AFTER)
    assert [(c.after["name"], c.direction, c.importance) for c in changes] == [
        ("a/mended", "better", "high"),
        ("a/worse", "worse", "medium"),
        ("a/same", "same", "high"),
        ("a/new-place", "same", "low"),
        ("a/unbuilt", "one", "low"),
    ]
    assert others == ["a/dropped"]
    assert short(changes).startswith(
        "5 cases in both: the verdict is the same in 2, better in 1, worse in 1; 1 were judged"
    )


def test_a_note_groups_the_changes_that_it_explains_and_others_go_by_their_verdicts() -> None:
    changes = [Change(a, b) for a, b in zip(BEFORE.rows[:2], AFTER.rows[:2], strict=True)]
    assert [(note and note.title, len(of)) for note, of in grouped(changes, (NOTE,))] == [
        ("It is refused", 1),
        (None, 1),
    ]
    assert not NOTE.fits("a/mended", Verdict.LATE, Verdict.CLEAR)


def test_the_report_gives_cause_places_importance_risk_and_test_of_each_change() -> None:
    blocks = list(change_report(BEFORE, AFTER))
    assert headings(blocks)[:3] == ["vLLM 0.1.0 to 0.2.0: what changed in its loaders", "In short", "Worse"]
    worse, better, *_ = (dict(b.items) for b in blocks if isinstance(b, Items))
    assert worse["cause"] == worse["risk"] == worse["test that upstream lacks"] == "not looked into"
    assert worse["importance"] == "medium"
    assert better["importance"] == "high"
    assert better["files and symbols"] == f"`{LOADER}` (code changed), `{MOVED}` (new)"
    counts = table(blocks, "verdict", "defective, before", "after", "sound, before", "after")
    assert ("loaded wrong in silence", "2", "1", "0", "0") in counts.rows
    assert ("loaded right", "0", "0", "0", "1") in counts.rows
    every = table(blocks, "case", "defect", "before", "after")
    assert ("`a/worse`", "`missing`", "late error", "unclear error") in every.rows
    assert len(every.rows) == 5
    stands = table(blocks, "finding", "verdict", "cases", "code at its places", "test that upstream lacks")
    assert stands.rows[0][1:4] == ("loaded wrong in silence", "1", f"`{LOADER}` (code changed)")
    words = table(blocks, "case", "verdict", "seen before", "seen after")
    assert [cells[0] for cells in words.rows] == ["`a/new-place`"]
    assert any(isinstance(b, Text) and b.text.endswith("not compared: `a/dropped`.") for b in blocks)


def test_two_runs_of_one_version_have_no_changes() -> None:
    told = headings(list(change_report(BEFORE, BEFORE)))
    assert not {"Worse", "Better", "Judged in one version alone"} & set(told)


def test_the_results_of_another_run_are_read_and_their_cases_chosen(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text(BEFORE.text())
    assert read_recorded(path) == BEFORE
    assert [r["name"] for r in recorded_by(str(path), "a/m*").rows] == ["a/mended"]
    path.write_text("{}")
    with pytest.raises(UsageError, match="does not hold the results of an audit: KeyError: 'versions'") as caught:
        recorded_by(str(path), "*")
    assert "--out" in str(caught.value.hint)


def test_a_python_that_cannot_audit_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--against .*: No such file"):
        recorded_by(str(tmp_path / "python"), "*")
    with pytest.raises(UnsupportedError, match="failed"):
        recorded_by(sys.executable, "no/such case")  # refused by the other's command


def test_code_is_compared_by_the_name_of_its_place(tmp_path: Path) -> None:
    file = tmp_path / "vllm" / "a.py"
    file.parent.mkdir()
    file.write_text("class A:\n    def load_weights(self):\n        return 1\n")
    before = digest_places([LOADER, "vllm/a.py", "vllm/a.py: B"], tmp_path)
    file.write_text("x = 1\n\n\nclass A:\n\n    def load_weights(self):\n        return 1\n")
    after = digest_places([LOADER, "vllm/a.py", MOVED], tmp_path)
    assert before[LOADER] == after[LOADER] != GONE
    assert before["vllm/a.py"] != after["vllm/a.py"]
    assert before["vllm/a.py: B"] == after[MOVED] == GONE


@pytest.mark.parametrize("path", sorted(AUDITS.glob("*-to-*.md")), ids=lambda p: p.stem)
def test_a_published_change_report_is_what_the_published_results_make(path: Path, tmp_path: Path) -> None:
    before, after = path.stem.split("-to-")
    old, new = (read_recorded(AUDITS / f"{stem}.json") for stem in (before, f"vllm-{after}"))
    written = write_changes(tmp_path, old, new)
    assert [p.read_text() for p in written] == [(AUDITS / p.name).read_text() for p in written]
    assert "not looked into" not in markdown(change_report(old, new))
    assert html(title_of(old, new), change_report(old, new))
    assert json.loads((AUDITS / f"{before}.json").read_text())["places"]
