"""Every model that can be made, on a dozen layouts, against the golden table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadmaster.synth import PRESETS
from tools import matrix


@pytest.mark.slow
@pytest.mark.parametrize(("page", "title", "write"), matrix.PAGES, ids=["tiny", "published"])
def test_the_models_plan_as_the_table_says(page: Path, title: str, write: Callable[..., object]) -> None:
    assert matrix.matrix(title, write) == page.read_text(encoding="utf-8"), (
        "run `python -m tools.matrix --full` and look at what changed"
    )


@pytest.mark.parametrize(("page", "title", "write"), matrix.PAGES, ids=["tiny", "published"])
def test_what_is_read_of_a_page_is_what_it_was_written_from(
    page: Path, title: str, write: Callable[..., object]
) -> None:
    said = matrix.known(page.read_text(encoding="utf-8"))
    assert said.keys() == PRESETS.keys()
    assert matrix.matrix(title, write, said) == page.read_text(encoding="utf-8")
