"""Which architecture a config means, and what is said where it means none that is known."""

from __future__ import annotations

from typing import Any

import pytest

from loadmaster.architectures.aliases import ALIASES, MODEL_TYPES, architecture_of
from loadmaster.architectures.registry import find_family, known
from loadmaster.errors import ConfigError
from loadmaster.synth import PRESETS


def test_every_alias_and_model_type_means_an_architecture_that_is_known() -> None:
    assert {*ALIASES.values(), *MODEL_TYPES.values()} <= set(known())
    assert not ALIASES.keys() & set(known())


@pytest.mark.parametrize("names", [["LLaMAForCausalLM"], None, []])
def test_an_alias_or_a_model_type_alone_finds_the_family_and_the_schema(names: list[str] | None) -> None:
    config = PRESETS["llama"].config_of(tiny=True)
    changed = {**config, "architectures": names}
    family = find_family(changed)
    assert family is find_family(config)
    assert family.describe(changed).values["architectures"] == ["LlamaForCausalLM"]
    assert family.schema(family.describe(changed)) == family.schema(family.describe(config))


@pytest.mark.parametrize("names", [{}, "LlamaForCausalLM", [None], [""], [["LlamaForCausalLM"]], 3])
def test_what_is_no_list_of_names_is_refused_whatever_the_model_type(names: Any) -> None:
    config = {"architectures": names, "model_type": "llama"}
    assert architecture_of(config) is None
    with pytest.raises(ConfigError, match="names no architecture"):
        find_family(config)


def test_a_model_type_that_is_not_known_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match="the model_type 'qwen3_mo' is not known") as caught:
        find_family({"model_type": "qwen3_mo"})
    assert str(caught.value.hint).startswith("nearest: qwen3_moe")


def test_an_unknown_architecture_has_its_nearest_names_in_the_hint_and_not_all() -> None:
    with pytest.raises(ConfigError) as caught:
        find_family({"architectures": ["Qwen3MoEForCausalLM"]})
    hint = str(caught.value.hint)
    assert hint.startswith("nearest: Qwen3MoeForCausalLM")
    assert "DeepseekV3ForCausalLM" not in hint


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            {"architectures": ["Qwen3ForCausalLM"]},
            "its language model (text_config) is Qwen3ForCausalLM, which is known",
        ),
        ({"model_type": "llama"}, "its language model (text_config) is LlamaForCausalLM, which is known"),
        ({"architectures": ["GPT9"]}, "its language model (text_config) is GPT9, which is not known either"),
    ],
)
def test_an_unknown_wrapper_has_its_language_model_in_the_hint(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="'Seer' is not known") as caught:
        find_family({"architectures": ["Seer"], "text_config": section})
    assert says in str(caught.value.hint)
