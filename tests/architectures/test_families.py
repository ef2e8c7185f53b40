"""A tiny model of every family, made and saved by transformers, is loaded as the reference says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loadmaster.parallel import ParallelLayout
from loadmaster.synth import PRESETS
from tests.loader.reference import read_all
from tests.loader.test_presets import assert_loads_as_the_reference

OTHERWISE = (
    *("gpt-oss", "kimi-k2-int4", "mimo-v2.5-pro", "mimo-v2.6-pro"),  # MiMo's class is V2-Flash's
    *("kimi-k3", "mistral-large-3", "deepseek-v4.1-flash"),  # without a class
    *("kimi-linear", "deepseek-v4-flash", "deepseek-v4-pro-0813"),  # saved in names that no release has
    *("mistral-4", "mistral-large-4", "hy4-preview", "minimax-m3-mxfp8", "muse-spark-nvfp4", "glm-5.3-flash"),
    *("step-3.7-flash", "qwen3.8-flash-next"),  # their classes are not ones for text alone
    *("inkling", "inkling-2", "inkling-2-loop"),
)
MODELS = [name for name, preset in PRESETS.items() if preset.format is None and name not in OTHERWISE]


def config_of(preset: str, *, tiny: bool) -> dict[str, Any]:
    """A preset's config as transformers knows it: not quantised, and of a model type that it has."""
    config = PRESETS[preset].config_of(tiny=tiny)
    config.pop("quantization_config", None)
    if config["model_type"] == "kimi_k2":
        config["model_type"] = "deepseek_v3"
    return config


DIVIDED = [name for name in MODELS if name != "smollm2"]  # three key heads do not divide over two ranks


@pytest.fixture(scope="module", params=DIVIDED)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM  # a second, which other test processes need not wait

    torch.manual_seed(3)
    config = AutoConfig.for_model(**config_of(request.param, tiny=True))
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for tensor in made.state_dict().values():  # norms are ones and biases zeros as they are made
            if tensor.is_floating_point():
                tensor.normal_()
    return made


PUBLISHED_ONLY = ("bailing_hybrid", "longcat_flash")
"""Models of which no release has the names inside transformers: experts in one tensor, LongCat's with rows of no expert."""


@pytest.mark.parametrize("original", [True, False], ids=["published names", "names inside transformers"])
def test_what_transformers_saves_is_loaded_as_the_reference(
    model: torch.nn.Module, original: bool, tmp_path: Path
) -> None:
    if not original and model.config.model_type in PUBLISHED_ONLY:
        pytest.skip("no release has these names")
    model.save_pretrained(tmp_path, save_original_format=original)
    if not original:
        assert read_all(tmp_path).keys() <= model.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    if config.get("num_nextn_predict_layers"):  # said, and not there: transformers does not build MTP layers
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    assert_loads_as_the_reference(tmp_path, ParallelLayout(2, 2))
