"""What computing a model needs of its config: values, and errors that name the key."""

from typing import Any

import pytest

from loadmaster.architectures import Config, gemma3, glm4_moe, gpt_oss, llama, mixtral, olmo, phi3, qwen_moe
from loadmaster.architectures.model import require, windows_by_type
from loadmaster.architectures.registry import MODELS, read_model
from loadmaster.architectures.rope import Rope, read_rope, read_ropes, rotary_dim
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


def test_layers_of_two_types_have_rotary_embeddings_each() -> None:
    newer = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_theta": 5}}
    assert read_ropes(Config({"rope_parameters": newer}), theta=1e6, sliding_theta=1e4) == (
        Rope("linear", 1e6, 8.0),
        Rope("default", 5.0),
    )
    older = Config({"rope_scaling": {"rope_type": "linear", "factor": 8.0}})  # of layers with full attention only
    assert read_ropes(older, theta=3.0, sliding_theta=4.0) == (Rope("linear", 3.0, 8.0), Rope("default", 4.0))
    with pytest.raises(UnsupportedError, match="parameters that hold for all layers are not supported"):
        read_ropes(Config({"rope_parameters": {"rope_type": "default"}}), theta=1.0, sliding_theta=1.0)


def test_a_part_of_a_head_is_rotated() -> None:
    assert rotary_dim(Config({}), 128) == 128
    assert rotary_dim(Config({}), 128, factor=0.5) == 64
    assert rotary_dim(Config({"partial_rotary_factor": 0.25}), 128, factor=0.5) == 32
    assert rotary_dim(Config({"rope_parameters": {"partial_rotary_factor": 0.75}}), 128) == 96
    with pytest.raises(ConfigError, match=r"partial_rotary_factor is 0\.3: 19 of 64 elements"):
        rotary_dim(Config({"partial_rotary_factor": 0.3}), 64)


def test_windows_by_type_need_a_known_type_for_each_layer() -> None:
    default = ["sliding_attention", "full_attention"]
    assert windows_by_type(Config({"num_hidden_layers": 2}), 8, default) == (8, None)
    reverse = Config({"num_hidden_layers": 2, "layer_types": default[::-1]})
    assert windows_by_type(reverse, 8, default) == (None, 8)
    for types in (["full_attention"], ["full_attention", "chunked_attention"]):
        with pytest.raises(
            ConfigError, match="layer_types must give sliding_attention or full_attention for each of 2"
        ):
            windows_by_type(Config({"num_hidden_layers": 2, "layer_types": types}), 8, default)


def test_defaults_are_those_of_the_models_own_config_class() -> None:
    """Published configs leave out what transformers' class has: each family's theta, epsilon and windows."""

    def tiny(name: str) -> Config:
        return Config(PRESETS[name].config_of(tiny=True))

    assert mixtral.read_model(tiny("mixtral")).attention.rope.theta == 1e6
    minimax = mixtral.read_model(tiny("minimax-m2"))
    assert (minimax.attention.rope.theta, minimax.norm_eps) == (5e6, 1e-6)
    assert glm4_moe.read_model(tiny("glm-4.5-air")).attention.rope_dim == 8  # half of a head
    assert not qwen_moe.read_model(tiny("qwen3-moe")).router.normalise
    assert phi3.read_model(tiny("phi-4")).window is None
    assert olmo.read_model(tiny("olmo-2")).windows == (None,) * 4
    assert olmo.read_model(tiny("olmo-3")).windows == (4096, 4096, 4096, None)
    assert gpt_oss.read_model(tiny("gpt-oss-bf16")).windows == (128, None, 128, None)
    assert gpt_oss.read_model(tiny("gpt-oss-bf16")).attention.rope == Rope("yarn", 150000.0, 32.0, 4096, truncate=False)
    gemma = gemma3.read_model(gemma3.FAMILY.describe(PRESETS["gemma-3"].config_of(tiny=False)))
    assert (gemma.windows[:6], gemma.attention.scale) == ((1024,) * 5 + (None,), 1 / 16)
    assert (gemma.attention.rope.theta, gemma.sliding_attention.rope.theta) == (1e6, 1e4)


def test_a_null_key_is_an_absent_one() -> None:
    require(Config({"hidden_act": None}), "hidden_act", "silu")
    with pytest.raises(UnsupportedError, match="hidden_act 'gelu' is not supported"):
        require(Config({"hidden_act": "gelu"}), "hidden_act", "silu")


@pytest.mark.parametrize(
    ("preset", "change", "says"),
    [
        ("qwen2-moe", {"use_sliding_window": True}, "use_sliding_window True"),
        ("qwen3-moe", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("minimax-m2", {"qk_norm_type": "per_head"}, "qk_norm_type 'per_head'"),
        ("minimax-m2", {"attn_type_list": [1, 0, 1, 1]}, "attn_type_list has linear attention"),
        ("minimax-m2", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("glm-4.5-air", {"topk_method": "greedy"}, "topk_method 'greedy'"),
        ("phi-4", {"rope_scaling": {"type": "longrope"}}, "type 'longrope' are not supported"),
        ("phi-4", {"rope_scaling": {"type": "yarn", "factor": 2}}, "type 'yarn' are not supported in Phi-3"),
        ("gemma-3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ("gemma-3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("gpt-oss", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_what_a_family_does_not_compute_is_refused_by_name(preset: str, change: dict[str, Any], says: str) -> None:
    family = PRESETS[preset].family_of(config := PRESETS[preset].config_of(tiny=True))
    described = Config({**family.describe(config).values, **change})
    with pytest.raises(UnsupportedError) as caught:
        MODELS[family.name](described)
    assert says in caught.value.message


def test_a_family_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="family qwen3_next can be planned and loaded, not run yet"):
        read_model(PRESETS["qwen3-next"].config_of(tiny=True))
