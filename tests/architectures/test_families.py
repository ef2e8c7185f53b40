"""Every family against transformers' own model: names and shapes at full size, bytes of tiny ones that it saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures.published import Shapes, described, published
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import FAMILIES, find_family, language_config
from loadmaster.parallel import ParallelLayout
from loadmaster.synth import PRESETS
from tests.loader.reference import read_all
from tests.loader.test_presets import assert_loads_as_the_reference

MODELS = [name for name, preset in PRESETS.items() if preset.format is None and name not in ("gpt-oss", "kimi-k2-int4")]


def config_of(preset: str, *, tiny: bool) -> dict[str, Any]:
    """A preset's config as transformers knows it: not quantised, and of a model type that it has."""
    config = PRESETS[preset].config_of(tiny=tiny)
    config.pop("quantization_config", None)
    if config["model_type"] == "kimi_k2":
        config["model_type"] = "deepseek_v3"
    return config


def without_drafts(shapes: Shapes, config: dict[str, Any]) -> Shapes:
    """What is left without the MTP layers, which transformers does not build."""
    num_layers = config.get("text_config", config)["num_hidden_layers"]
    return {n: s for n, s in shapes.items() if not n.startswith(f"model.layers.{num_layers}.")}


def waived(name: str, config: dict[str, Any]) -> bool:
    family = find_family(config)
    schema = family.schema(Config(language_config(family, config)))
    return any(re.fullmatch(pattern, name) for pattern, _ in (*family.waived, *schema.waived))


def test_every_family_has_a_model_here() -> None:
    assert {find_family(config_of(name, tiny=True)).name for name in MODELS} == {f.name for f in FAMILIES}


@pytest.mark.parametrize("preset", MODELS)
def test_names_and_shapes_are_those_of_transformers_at_full_size(preset: str) -> None:
    config = config_of(preset, tiny=False)
    theirs = published(AutoConfig.for_model(**config))
    theirs = {name: shape for name, shape in theirs.items() if not waived(name, config)}
    spellings = range(len(find_family(config).spellings))
    assert theirs in [without_drafts(described(config, n), config) for n in spellings]


DIVIDED = [name for name in MODELS if name != "smollm2"]  # three key heads do not divide over two ranks


@pytest.fixture(scope="module", params=DIVIDED)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(3)
    config: PretrainedConfig = AutoConfig.for_model(**config_of(request.param, tiny=True))
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for tensor in made.state_dict().values():  # norms are ones and biases zeros as they are made
            if tensor.is_floating_point():
                tensor.normal_()
    return made


@pytest.mark.parametrize("original", [True, False], ids=["published names", "names inside transformers"])
def test_what_transformers_saves_is_loaded_as_the_reference(
    model: torch.nn.Module, original: bool, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, save_original_format=original)
    if not original:
        assert read_all(tmp_path).keys() <= model.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    if config.get("num_nextn_predict_layers"):  # said, and not there: transformers does not build MTP layers
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    assert_loads_as_the_reference(tmp_path, ParallelLayout(2, 2))
