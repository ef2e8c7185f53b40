"""Every model that can be made, on a dozen layouts, against the golden table."""

from __future__ import annotations

import pytest

from loadmaster.synth import write_full_size, write_tiny
from tools import matrix


@pytest.mark.slow
def test_the_tiny_models_plan_as_the_golden_table_says() -> None:
    assert matrix.matrix("Layouts of the tiny models", write_tiny) == matrix.GOLDEN.read_text(encoding="utf-8"), (
        "run `python -m tools.matrix` and look at what changed"
    )


@pytest.mark.slow
def test_the_published_models_plan_as_the_reference_says() -> None:
    assert matrix.matrix("Layouts of the published models", write_full_size) == matrix.PAGE.read_text(
        encoding="utf-8"
    ), "run `python -m tools.matrix --full` and look at what changed"
