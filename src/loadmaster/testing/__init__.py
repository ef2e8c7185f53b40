"""Checks for authors of model families: are the three tables right? To be called from pytest.

    from loadmaster.testing import check_family

    def test_the_tables_are_right(tmp_path):
        check_family(FAMILY, CONFIG, tmp_path)

Each check raises `FamilyFaults`, an `AssertionError` whose sentences say what is wrong, and in which table. From fast to
thorough: `check_tables` checks only the tables; `check_plans` writes tiny checkpoints and proves them on a dozen layouts;
`check_loading` loads them and compares bytes (needs torch); `compare_with_transformers` compares names and shapes with the
model's class in transformers, without weights; `compare_placements` compares how tensors are divided with its
tensor-parallel plan. `check_family` makes all checks that the environment allows.

The family does not need to be registered: `described` attaches it to a checkpoint.
"""

from loadmaster.testing.family import check_family
from loadmaster.testing.faults import FamilyFaults
from loadmaster.testing.loading import check_loading
from loadmaster.testing.modelling import compare_with_transformers, published_shapes
from loadmaster.testing.placements import Compared, compare_placements
from loadmaster.testing.plans import check_plans, described, layouts_of, write_checkpoint
from loadmaster.testing.tables import check_tables, stored_shapes, unreached

__all__ = [
    "Compared",
    "FamilyFaults",
    "check_family",
    "check_loading",
    "check_plans",
    "check_tables",
    "compare_placements",
    "compare_with_transformers",
    "described",
    "layouts_of",
    "published_shapes",
    "stored_shapes",
    "unreached",
    "write_checkpoint",
]
