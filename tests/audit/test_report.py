"""The report, made of results as they are kept: findings by harm, with a cause where the version is the one that was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadmaster.audit.cases import CASES
from loadmaster.audit.notes import read_notes
from loadmaster.audit.page import Heading, Items, Table, html, markdown
from loadmaster.audit.recorded import Recorded, read_recorded
from loadmaster.audit.report import groups, report, summary, title_of, write_reports
from loadmaster.audit.verdict import Verdict

VERSIONS = {"vllm": "0.32.0+cpu", "torch": "2.13.0", "loadmaster": "0.1.0"}
NOTES = read_notes("vllm-0.32", "0.32.0")
AUDITS = Path(__file__).parents[2] / "docs" / "audits"
WK = "glm-5.1-fp8/wk-scale-missing"


def row(name: str, verdict: Verdict, kind: str | None = "scale-missing", **more: Any) -> dict[str, Any]:
    attempt = {
        "raised_in": "",
        "loader": "vllm/a.py: A.load_weights",
        "num_params": 5,
        "num_compared": 4,
        "narrowed": 0,
    }
    return {
        "name": name,
        "preset": name.split("/")[0],
        "family": "deepseek",
        "rank": "pp0of1-tp0of1",
        "draft": None,
        "kind": kind,
        "defect": "a <scale> is `missing` | gone" if kind else None,
        "verdict": verdict.value,
        "evidence": "'a' & <b> | `c`",
        "auto": attempt,
        "tracked": None,
        "processed": False,
        "plan": [{"code": "scale-missing", "severity": "error"}],
        "verify": [],
        "loadmaster": {"verdict": "late error", "evidence": "LoadError: named", **attempt},
        **more,
    }


ROWS = [
    row("qwen3/sound", Verdict.RIGHT, None),
    row("llama/sound", Verdict.NOT_RUN, None),
    row("qwen3/norm-float32", Verdict.RIGHT, "dtype"),
    row("qwen3/unheard-of", Verdict.UNCLEAR, "dtype"),
    row(WK, Verdict.SILENT, tracked="late error", processed=True),
    row(WK + "@pp1of2", Verdict.SILENT, tracked=Verdict.SILENT.value),
]
RECORDED = Recorded(VERSIONS, ROWS, {"vllm/a.py: A.load_weights": "0123"})


def test_findings_come_by_harm_and_cases_of_one_note_together() -> None:
    (note, silent), (unknown, unclear) = groups(ROWS, NOTES)
    assert note is not None
    assert "wk" in note.title
    assert [r["name"] for r in silent] == [WK, f"{WK}@pp1of2"]
    assert unknown is None
    assert [r["name"] for r in unclear] == ["qwen3/unheard-of"]


def test_notes_are_of_one_version_and_for_another_nobody_has_looked() -> None:
    told = {b.text for b in report(RECORDED) if isinstance(b, Heading)}
    assert any(text.startswith("1. The indexer's `wk`") for text in told)
    other = {b.text for b in report(Recorded({**VERSIONS, "vllm": "0.99.0"}, ROWS)) if isinstance(b, Heading)}
    assert "1. a scale is missing: not looked into" in other


def test_a_finding_says_where_how_to_see_it_again_and_what_else_would_have_found_it() -> None:
    items = next(dict(b.items) for b in report(RECORDED) if isinstance(b, Items))
    assert items["verdict"] == "loaded wrong in silence, in 2 cases"
    assert items["again"] == f"`loadmaster audit vllm --cases '{WK}'`"
    assert "_try_load_fp8_indexer_wk" in items["where"]
    assert "`vllm/a.py: A.load_weights`" in items["where"]
    assert "1 of 2 raise an error" in items["vLLM's own checks"]
    assert "was run in 1 and raised nothing" in items["vLLM's own checks"]
    assert items["test that upstream lacks"]


def test_counts_are_of_defective_and_sound_apart_and_what_was_not_run_is_not_among_findings() -> None:
    counts = next(b for b in report(RECORDED) if isinstance(b, Table))
    assert ("loaded wrong in silence", "2", "0", "0") in counts.rows
    assert ("late error", "0", "4", "0") in counts.rows
    assert ("not run", "0", "0", "1") in counts.rows
    assert summary(ROWS) == ("6 cases: 2 loaded wrong in silence, 1 unclear error, 2 loaded right, 1 not run")


def test_what_engines_say_is_code_in_both_forms() -> None:
    blocks = list(report(RECORDED))
    assert "`'a' & <b> \\| 'c'`" in markdown(blocks)
    page = html(title_of(RECORDED), blocks)
    assert "<code>&#x27;a&#x27; &amp; &lt;b&gt; | &#x27;c&#x27;</code>" in page
    assert "<scale>" not in page


def test_the_three_files_are_written_and_the_json_makes_the_same_pages_again(tmp_path: Path) -> None:
    paths = write_reports(tmp_path / "new", RECORDED)
    assert [p.name for p in paths] == ["vllm-0.32.json", "vllm-0.32.md", "vllm-0.32.html"]
    kept = read_recorded(paths[0])
    assert kept == RECORDED
    assert markdown(report(kept)) == paths[1].read_text()


def test_each_note_fits_a_case_and_names_no_verdict_that_is_none() -> None:
    names = [c.name for c in CASES]
    for note in NOTES:
        assert any(note.fits(n, note.verdict.value) for n in names), note.title
        assert note.verdict.harm < Verdict.CLEAR.harm


@pytest.mark.parametrize("path", sorted(AUDITS.glob("*.json")), ids=lambda p: p.stem)
def test_a_published_report_is_what_its_results_make(path: Path) -> None:
    kept = read_recorded(path)
    blocks = list(report(kept))
    assert path.stem == kept.stem
    assert path.with_suffix(".md").read_text() == markdown(blocks)
    assert path.with_suffix(".html").read_text() == html(title_of(kept), blocks)
    notes = read_notes(path.stem, kept.version)
    assert all(note is not None for note, _ in groups(kept.rows, notes))  # each finding was looked into
    judged = [r for r in kept.rows if r["kind"] and r["verdict"] != Verdict.NOT_RUN.value]
    assert {r["name"] for r in judged} <= {c.name for c in CASES}
