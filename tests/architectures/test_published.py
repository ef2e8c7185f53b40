"""Every family against transformers' own classes, and its parameters against the stored bytes, with the kit for authors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from loadmaster.architectures.registry import FAMILIES, find_family
from loadmaster.architectures.wrapper import WrappedFamily
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
    "deepseek-v4-flash",
)
"""Presets whose tables another preset has too."""
DISTINCT_FIRST = quick(PLAIN, *(name for name in PLAIN if name not in ALIKE))


OTHER_NAMES = ("deepseek-v4-flash", "deepseek-v4-pro-0813", "kimi-linear")
"""Models that transformers saves in names that no release has; the tests of their families compare what can be compared."""


@pytest.mark.parametrize(
    "name", quick((n for n in PLAIN if n not in OTHER_NAMES), *(n for n in PLAIN if n not in ALIKE))
)
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
    drafts = family.schema(family.describe(config)).num_drafts
    layouts: list[ParallelLayout] = []
    if name != "smollm2":  # its three key heads divide over one rank
        layouts = [
            ParallelLayout(2, 2, num_draft_layers=drafts),
            *[x for x in layouts_of(family, config) if x.enable_expert_parallel][-1:],
        ]
    assert check_loading(family, config, tmp_path, layouts=layouts or [ParallelLayout(2)]) > 0


def test_what_the_published_configs_do_not_reach_is_known() -> None:
    """Names of shared blocks that no model of a family has, biases left out; a new one here is a missing tensor."""
    left = {
        family.name: {name for name in unreached(family, *configs) if not name.endswith("_bias")}
        for family in FAMILIES
        if (configs := list(_configs(family.name)))
    }
    mlp, norms = {"mlp.gate", "mlp.up", "mlp.down"}, {"attn.q_norm", "attn.k_norm"}
    not_latent = {"attn.q", "attn.k", "attn.v", "attn.q_direct", "attn.kv_direct"} | norms
    assert {name: names for name, names in left.items() if names} == {
        "deepseek": not_latent,
        "deepseek_v4": {"moe.bias_vl"},
        "deepseek_v41": {f"attn.indexer.compressor.{part}" for part in ("norm", "wkv", "wgate")},
        "bailing_hybrid": {"attn.q_a", "attn.q_a_norm", "attn.q_b", "attn.kv_a"}
        | {f"linear.{part}_{n}" for part in "fg" for n in "ab"},
        "inkling2": {"moe.scale", "shared.gate_up", "shared.down"},
        "longcat_flash": {f"{n}.attn.{part}_direct" for part in ("q", "kv") for n in "01"}
        | {f"ngram.{kind}{n}" for kind in ("", "projection.") for n in range(64)},
        "glm5_next": {"attn.q_direct", "attn.kv_direct", "linear.f", "linear.g"},
        "hy_v4": not_latent,
        "kimi_linear": {"linear.f"},
        "mistral_large": not_latent | {f"indexer.{part}" for part in ("wq_b", "wk", "weights_proj", "k_norm")},
        "mistral_large4": {"attn.q_a", "attn.q_a_norm", "attn.q_b", "attn.kv_a"},
        "gemma4": {"head"},
        "muse_spark": norms,
        "mixtral": mlp,
        "gpt_oss": mlp | norms,
        "llama4": norms,
        "gemma3": {"head"},
        "phi3": norms,
        "granite_moe": mlp | norms | {"head"},
        "olmo": {"input_norm"},
        "mimo_v2": norms,
    }


def _configs(family: str) -> Iterator[Mapping[str, object]]:
    """The configs of language models of a family, also of those inside of other models."""
    for preset in PRESETS.values():
        for config in (preset.config_of(tiny=True), preset.config_of(tiny=False)):
            found = find_family(config)
            inside = found.describe(config).values if isinstance(found, WrappedFamily) else config
            if find_family(inside).name == family:
                yield inside
