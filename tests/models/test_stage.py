"""Which families run: the tables say it, and the layers must be there."""

from loadmaster.architectures.registry import FAMILIES, MODELS, find_family, read_model
from loadmaster.models.build import LAYERS
from loadmaster.synth import PRESETS


def test_the_families_that_say_they_run_are_those_that_have_layers() -> None:
    assert {f.name for f in FAMILIES if f.runs} == set(MODELS)
    configs = [preset.config_of(tiny=True) for preset in PRESETS.values()]
    assert {type(read_model(c)) for c in configs if find_family(c).runs} == set(LAYERS)
