"""What computing a model needs of its config: values, and errors that name the key."""

from typing import Any

import pytest

from loadmaster.architectures import Config, llama
from loadmaster.architectures.registry import read_model
from loadmaster.architectures.rope import Rope, read_rope
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.synth import PRESETS

LLAMA = PRESETS["llama"].config_of(tiny=True)
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1}


def test_both_spellings_of_rotary_embeddings_are_read_alike() -> None:
    older = read_rope(Config({"rope_theta": 50000, "rope_scaling": YARN}))
    assert older == read_rope(Config({"rope_parameters": {**YARN, "rope_theta": 50000.0}}))
    assert older == Rope("yarn", 50000.0, 40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    assert read_rope(Config({})) == Rope("default", 10000.0)


def test_yarn_stretches_the_models_own_length_where_it_names_no_other() -> None:
    rope = read_rope(Config({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "yarn", "factor": 4}}))
    assert rope.original_length == 2048


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json, rope_scaling has no 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0, expected a number above 0"),
        (
            {"rope_parameters": {"rope_theta": "high"}},
            "config.json, rope_parameters: rope_theta is 'high', expected a number",
        ),
        ({"rope_scaling": "yarn"}, "config.json: rope_scaling is 'yarn', expected an object"),
        ({"rms_norm_eps": None}, "config.json has no 'rms_norm_eps'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, expected a number"),
        ({"rope_theta": 10**400}, "rope_theta is an integer of 1329 bits, expected a number"),
        (
            {"sliding_window": 8, "layer_types": ["full_attention"]},
            "layer_types has 1 entries, expected one for each of 4",
        ),
    ],
)
def test_an_impossible_value_is_an_error_that_names_its_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_model({**LLAMA, "rope_scaling": None, **change})
    assert says in caught.value.message


def test_windows_follow_the_rule_of_each_model() -> None:
    def windows(**values: Any) -> tuple[int | None, ...]:
        return llama.windows(Config({"num_hidden_layers": 3, "sliding_window": 8, **values}))

    assert windows() == (None, None, None)
    assert windows(model_type="mistral") == (8, 8, 8)
    assert windows(use_sliding_window=True, max_window_layers=2) == (None, None, 8)
    assert windows(use_sliding_window=False, layer_types=["sliding_attention"] * 3) == (None, None, None)
    assert windows(layer_types=["sliding_attention", "full_attention", "sliding_attention"]) == (8, None, 8)


def test_a_family_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="family mixtral can be planned and loaded, not run yet"):
        read_model(PRESETS["mixtral"].config_of(tiny=True))
