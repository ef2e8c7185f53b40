"""Every family against transformers' own classes, and its parameters against the stored bytes, with the kit for authors."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.parallel import ParallelLayout
from loadmaster.synth import PRESETS
from loadmaster.testing import check_loading, check_tables, compare_with_transformers, layouts_of, unreached
from loadmaster.testing.modelling import has_model
from tests.conftest import quick

PLAIN = [name for name, p in PRESETS.items() if p.format is None]
ALIKE = (
    "deepseek-v3",
    "kimi-k2",
    "kimi-k2-int4",
    "glm-5.1-fp8",
    "qwen3.8",
    "gpt-oss-bf16",
    "granite-moe",
    "qwen2",
    "olmo-2",
    "mimo-v2.5-pro",
)
"""Presets whose tables another preset has too."""
DISTINCT_FIRST = quick(PLAIN, *(name for name in PLAIN if name not in ALIKE))


@pytest.mark.parametrize("name", DISTINCT_FIRST)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    for tiny in (True, False):
        config = PRESETS[name].config_of(tiny=tiny)
        if not has_model(config):
            pytest.skip(f"transformers has no {config['architectures'][0]}")
        compare_with_transformers(find_family(config), config)


@pytest.mark.parametrize("name", PLAIN)
def test_tables_of_the_published_size_agree_with_one_another(name: str) -> None:
    config = PRESETS[name].config_of(tiny=False)
    check_tables(find_family(config), config)


@pytest.mark.parametrize("name", DISTINCT_FIRST)
def test_parameters_are_the_stored_bytes_in_every_spelling(name: str, tmp_path: Path) -> None:
    config = PRESETS[name].config_of(tiny=True)
    family = find_family(config)
    layouts: list[ParallelLayout] = []
    if name != "smollm2":  # its three key heads divide over one rank
        layouts = [ParallelLayout(2, 2), *[x for x in layouts_of(family, config) if x.enable_expert_parallel][-1:]]
    assert check_loading(family, config, tmp_path, layouts=layouts or [ParallelLayout(2)]) > 0


def test_what_the_published_configs_do_not_reach_is_known() -> None:
    """Names of shared blocks that no model of a family has, biases left out; a new one here is a missing tensor."""
    left = {
        family.name: {name for name in unreached(family, *_configs(family.name)) if not name.endswith("_bias")}
        for family in FAMILIES
        if _configs(family.name)
    }
    mlp, norms = {"mlp.gate", "mlp.up", "mlp.down"}, {"attn.q_norm", "attn.k_norm"}
    assert {name: names for name, names in left.items() if names} == {
        "deepseek": {"attn.q", "attn.k", "attn.v", "attn.q_direct", "attn.kv_direct"} | norms,
        "mixtral": mlp,
        "gpt_oss": mlp | norms,
        "llama4": norms,
        "gemma3": {"head"},
        "phi3": norms,
        "granite_moe": mlp | norms | {"head"},
        "olmo": {"input_norm"},
        "mimo_v2": norms,
    }


def _configs(family: str) -> list[dict[str, object]]:
    every = (p.config_of(tiny=tiny) for p in PRESETS.values() for tiny in (True, False))
    return [c for c in every if find_family(c).name == family]
