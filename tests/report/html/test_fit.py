"""The page of `fit`: a card for each layout in the order of the text, the refused ones with why, the smallest machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan
from loadmaster.report.fit import layout_table, options_of
from loadmaster.report.html import fit_html
from loadmaster.sizing import MemoryOptions
from loadmaster.sizing.fit import Fit, Fitter, Machine
from tests.conftest import Tiny
from tests.report.html.document import Document, assert_complete

GIB = 2**30


def fitted(path: Path, machine: Machine, num_draft_layers: int = 0) -> tuple[Fit, Plan]:
    plan = build_plan(open_checkpoint(path), ParallelLayout(num_draft_layers=num_draft_layers))
    return Fitter(plan, "native", MemoryOptions(max_num_batched_tokens=64)).fit(machine), plan


def classes(page: Document) -> list[str | None]:
    return [attrs.get("class") for _, attrs in page.elements]


@pytest.fixture(scope="module")
def four(tiny: Tiny) -> tuple[Fit, Plan]:
    return fitted(tiny("glm-5.1-fp8"), Machine((4 * GIB,) * 4), num_draft_layers=1)


def test_layouts_are_drawn_in_their_order_with_what_crosses(four: tuple[Fit, Plan]) -> None:
    fit, plan = four
    text = fit_html(fit, plan, "0.1.0", proven=True)
    assert_complete(text)
    page = Document(text)
    titles = [text for text in page.texts if text in {options_of(c.layout) for c in fit.fitting}]
    assert titles[: len(fit.fitting)] == [options_of(c.layout) for c in fit.fitting]
    assert classes(page).count("layout") == len(fit.fitting) + 1  # and the smallest machine
    columns, rows = layout_table(fit.fitting)
    assert {*columns, *(cell for row in rows for cell in row)} <= set(page.texts)
    crossing = next(c.crossing_bytes for c in fit.fitting if c.layout.pipeline_parallel_size == 2)
    assert any(t.startswith(f"↓ {crossing:,} bytes a token: hidden states") for t in page.texts)
    assert any(re.fullmatch(r"Fits 4 device\(s\) .* best: .*, proven", t) for t in page.texts)


def test_stages_that_look_the_same_share_a_bar(four: tuple[Fit, Plan]) -> None:
    fit, plan = four
    (alone,) = [c for c in fit.fitting if c.layout.pipeline_parallel_size == 4]
    page = Document(fit_html(Fit(fit.machine, (alone,), (), (), None), plan, "0.1.0", proven=True))
    lanes = [text for text in page.texts if text.startswith(("stage ", "stages "))]
    assert len(lanes) == classes(page).count("memory") < 4
    assert lanes[0].startswith("stage 0 · layers 0–")
    assert any(text.startswith("stages ") for text in lanes)
    size = alone.crossing_bytes // 3
    assert f"↕ {size:,} bytes a token: hidden states, from each of these" in " ".join(page.texts)


def test_what_is_refused_is_there_with_why(four: tuple[Fit, Plan], tiny: Tiny) -> None:
    fit, plan = four
    page = Document(fit_html(fit, plan, "0.1.0", proven=False))
    assert fit.illegal and all(f": {illegal.why}" in page.texts for illegal in fit.illegal)
    fit, plan = fitted(tiny("llama"), Machine((GIB,) * 2))
    text = fit_html(fit, plan, "0.1.0", proven=None)
    assert_complete(text)
    page = Document(text)
    assert not fit.fitting and len(fit.too_small) == 2
    assert {c.refused for c in fit.too_small} <= set(page.texts)
    assert classes(page).count("limit") == classes(page).count("memory") >= 2
    assert any(t.startswith("Does not fit 2 device(s)") for t in page.texts)
    assert any(t.startswith("None of up to 64 devices") for t in page.texts)
