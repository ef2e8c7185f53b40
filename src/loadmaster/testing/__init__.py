"""For authors of model families: whether the three tables are right, asked from pytest.

    from loadmaster.testing import check_family

    def test_the_tables_are_right(tmp_path):
        check_family(FAMILY, CONFIG, tmp_path)

Each check raises `FamilyFaults`, an `AssertionError` whose sentences say what is wrong with which table. They go from
cheap to thorough: `check_tables` looks at the tables alone; `check_plans` writes tiny checkpoints and proves them on a
dozen layouts; `check_loading` loads them and compares bytes (torch); `compare_with_transformers` holds names and shapes
against the model's class in transformers, without weights; `compare_placements` holds what is divided, and how, against
its plan of tensor parallelism. `check_family` does all that the environment allows.

A family needs to be registered nowhere for this: `described` makes a checkpoint bring it along.
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
