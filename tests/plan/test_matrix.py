"""Every model that can be made, on a dozen layouts, against the golden table."""

from __future__ import annotations

import pytest

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.synth import PRESETS
from tools import matrix

pages = pytest.mark.parametrize("page", matrix.PAGES, ids=["tiny", "published", "others"])


@pytest.mark.slow
@pages
def test_the_models_plan_as_the_table_says(page: matrix.Page) -> None:
    assert matrix.matrix(page) == page.path.read_text(encoding="utf-8"), (
        "run `python -m tools.matrix --full` and look at what changed"
    )


@pages
def test_what_is_read_of_a_page_is_what_it_was_written_from(page: matrix.Page) -> None:
    said = matrix.known(page)
    assert said.keys() == page.models.keys()
    assert matrix.matrix(page, said) == page.path.read_text(encoding="utf-8")


def test_every_family_is_on_a_page() -> None:
    configs = [*(p.config_of(tiny=True) for p in PRESETS.values()), *(p.config for p in matrix.OTHERS.values())]
    told = {find_family(c).name.partition(" inside ")[0] for c in configs if c.get("architectures")}
    assert {f.name for f in FAMILIES} <= told
