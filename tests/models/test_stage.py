"""Which families run: the tables say it, and the layers must be there."""

from loadmaster.architectures.registry import FAMILIES, MODELS, read_model
from loadmaster.models.build import LAYERS
from loadmaster.synth import PRESETS


def test_the_families_that_say_they_run_are_those_that_have_layers() -> None:
    assert {f.name for f in FAMILIES if f.runs} == set(MODELS)
    presets = [PRESETS[name].config_of(tiny=True) for name in ("deepseek-v3", "llama")]
    assert {type(read_model(config)) for config in presets} == set(LAYERS)
