"""Which families run: the tables say it, and the layers must be there."""

from loadmaster.architectures.registry import FAMILIES
from loadmaster.models.build import LAYERS


def test_the_families_that_say_they_run_are_those_that_have_layers() -> None:
    assert {f.name for f in FAMILIES if f.runs} == set(LAYERS)
