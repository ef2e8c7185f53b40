"""Makes all checks of a family that the environment allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadmaster.architectures.schema import Family
from loadmaster.parallel import ParallelLayout
from loadmaster.testing.loading import check_loading
from loadmaster.testing.modelling import compare_with_transformers, has_model
from loadmaster.testing.placements import compare_placements
from loadmaster.testing.plans import check_plans


def check_family(
    family: Family, config: Mapping[str, Any], folder: Path, *, layouts: Sequence[ParallelLayout] | None = None
) -> tuple[str, ...]:
    """Check a family's tables on a tiny ``config``, and return the names of the checks that were made.

    Loading needs torch; comparing needs transformers with a class for the model. Without them these checks are skipped.

    Raises:
        FamilyFaults: the tables are wrong.
    """
    check_plans(family, config, folder / "plans", layouts=layouts)
    done = ["check_tables", "check_plans"]
    if find_spec("torch") is not None:
        check_loading(family, config, folder / "loading", layouts=layouts)
        done.append("check_loading")
        if has_model(config):
            compare_with_transformers(family, config)
            compare_placements(family, config)
            done += ["compare_with_transformers", "compare_placements"]
    return tuple(done)
