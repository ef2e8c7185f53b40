"""The files in a real browser: light and dark, on a phone without scrolling sideways; a parameter is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import build_plan, prove
from loadmaster.plan.difference import compare_layouts
from loadmaster.report.html import fit_html, layout_difference_html, plan_html
from loadmaster.sizing import MemoryOptions, measure_proof
from loadmaster.sizing.fit import Fitter, Machine
from tests.conftest import Tiny

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture
def file(tiny: Tiny, tmp_path: Path) -> Path:
    plan = build_plan(open_checkpoint(tiny("glm-5.1-fp8")), ParallelLayout(2, 2, num_draft_layers=1))
    path = tmp_path / "plan.html"
    proof, options = prove(plan), MemoryOptions((2**33,), max_num_batched_tokens=64)
    path.write_text(plan_html(proof, "0.1.0", 2**33, measure_proof(proof, "native", options)), encoding="utf-8")
    return path


@pytest.fixture
def fit_file(tiny: Tiny, tmp_path: Path) -> Path:
    plan = build_plan(open_checkpoint(tiny("qwen3-moe")), ParallelLayout())
    fit = Fitter(plan, "native", MemoryOptions(max_num_batched_tokens=64)).fit(Machine((2**33, 2**33, 2**32, 2**32)))
    path = tmp_path / "fit.html"
    path.write_text(fit_html(fit, plan, "0.1.0", proven=True), encoding="utf-8")
    return path


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_a_chosen_parameter_shows_its_expression_and_ranges(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    assert page.locator(".stage").count() == 2
    page.select_option("#param", label="layers.0.self_attn.indexer.wk_weights_proj.weight")
    details = page.locator("#param-details")
    assert details.locator("code").first.text_content() == (
        "= Concat(Cast(Decode(fp8_block, model.layers.0.self_attn.indexer.wk.weight, "
        "model.layers.0.self_attn.indexer.wk.weight_scale_inv), BF16), model.layers.0.self_attn.indexer.weights_proj.weight)"
    )
    assert details.locator(".piece").count() == 2
    assert "bytes" in str(details.locator(".reads").first.text_content())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_is_wider_than_the_window(page: Page, file: Path, fit_file: Path, width: int, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    for path in (file, fit_file):
        page.goto(path.as_uri())
        assert overflow(page) == 0
        ground = str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert ground == ("rgb(243, 245, 247)" if scheme == "light" else "rgb(14, 19, 24)")
        for bar in page.locator(".memory").all():
            box = bar.bounding_box()
            assert box is not None and box["width"] > 50


def test_layouts_are_drawn_with_a_bar_for_each_kind_of_stage(page: Page, fit_file: Path) -> None:
    page.goto(fit_file.as_uri())
    assert page.locator("#fitting .layout").count() > 1
    colours = page.evaluate(
        "[...document.querySelectorAll('#fitting .key rect')].map(shown => getComputedStyle(shown).fill)"
    )
    assert len(set(colours)) == len(colours) > 3


def test_a_difference_is_drawn(page: Page, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("qwen3"))
    plans = [build_plan(checkpoint, ParallelLayout(*sizes)) for sizes in ((4, 1), (2, 2))]
    path = tmp_path / "difference.html"
    path.write_text(layout_difference_html(checkpoint, compare_layouts(*plans), "0.1.0"), encoding="utf-8")
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(path.as_uri())
    assert page.locator(".change").count() == 4
    assert overflow(page) == 0
