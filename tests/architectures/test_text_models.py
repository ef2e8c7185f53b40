"""Text models without a preset: names and shapes as transformers has them, and tables that agree with one another."""

from __future__ import annotations

from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.synth.models import TINY_MLA
from loadmaster.testing import check_tables, compare_with_transformers
from loadmaster.testing.modelling import has_model

MLA: dict[str, Any] = {
    **{k: v for k, v in TINY_MLA.items() if not k.endswith("token_id")},
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
}

MODELS: dict[str, dict[str, Any]] = {
    "DeepseekV2ForCausalLM": {**MLA, "q_lora_rank": None},
    "DeepseekV3ForCausalLM": {**MLA, "q_lora_rank": None},
    "DeepseekForCausalLM": MLA,
}
"""A tiny config of each architecture."""


@pytest.mark.parametrize("architecture", MODELS)
def test_names_and_shapes_are_those_of_transformers(architecture: str) -> None:
    config = {"architectures": [architecture], **MODELS[architecture]}
    family = find_family(config)
    if has_model(config):
        compare_with_transformers(family, config)
    else:
        assert architecture in family.unchecked
        check_tables(family, config)
