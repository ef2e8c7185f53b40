"""Every model that can be made, on a dozen layouts, against the golden table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.synth import PRESETS, Preset
from tools import matrix


@pytest.mark.slow
@pytest.mark.parametrize(("page", "title", "models", "write"), matrix.PAGES, ids=["tiny", "published", "others"])
def test_the_models_plan_as_the_table_says(
    page: Path, title: str, models: Mapping[str, Preset], write: Callable[..., object]
) -> None:
    assert matrix.matrix(title, models, write) == page.read_text(encoding="utf-8"), (
        "run `python -m tools.matrix --full` and look at what changed"
    )


@pytest.mark.parametrize(("page", "title", "models", "write"), matrix.PAGES, ids=["tiny", "published", "others"])
def test_what_is_read_of_a_page_is_what_it_was_written_from(
    page: Path, title: str, models: Mapping[str, Preset], write: Callable[..., object]
) -> None:
    said = matrix.known(page.read_text(encoding="utf-8"), models)
    assert said.keys() == models.keys()
    assert matrix.matrix(title, models, write, said) == page.read_text(encoding="utf-8")


def test_every_family_is_on_a_page() -> None:
    configs = [*(p.config_of(tiny=True) for p in PRESETS.values()), *(p.config for p in matrix.OTHERS.values())]
    told = {find_family(c).name.partition(" inside ")[0] for c in configs if c.get("architectures")}
    assert {f.name for f in FAMILIES} <= told
