"""Layers whose attention or MLP is stored in other tensors than usual are sized too."""

from __future__ import annotations

from typing import Any

import pytest

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.schema import Schema
from loadmaster.parallel import ParallelLayout
from loadmaster.sizing.activations import Batch, Choices, layer_bytes
from loadmaster.sizing.cache import layer_rows
from loadmaster.synth import PRESETS
from loadmaster.synth.models.latent import TINY_DEEPSEEK

BATCH, ONE = Batch(16, 1, "BF16"), Choices(1, 0)


def schema_of(config: dict[str, Any]) -> Schema:
    family = find_family(config)
    return family.schema(family.describe(config))


@pytest.mark.parametrize("rank", [None, 176])
def test_the_latent_is_kept_whether_or_not_queries_are_compressed(rank: int | None) -> None:
    schema = schema_of({"architectures": ["DeepseekV3ForCausalLM"], **TINY_DEEPSEEK, "q_lora_rank": rank})
    [row] = layer_rows(schema.kinds["dense/none"], 2, 2)
    assert (row.kind, row.width) == ("latent", 80 + 16)


@pytest.mark.parametrize(
    ("config", "kind", "widest"),
    [
        # per token: q and its group, three times; the residual and what was normed, 2 x 128
        ({"architectures": ["BloomForCausalLM"], "hidden_size": 128, "n_head": 8, "n_layer": 1}, "dense", 3 * 4 * 128 + 128),
        # 2 x 64 rows of q and k, 128 of v and of z: more than the MLP's 3 x 64, the experts' and the output
        (PRESETS["qwen3.8"].config_of(tiny=True), "linear_attention", 3 * 384),
    ],
)  # fmt: skip
def test_fused_and_linear_attention_and_a_plain_mlp_are_counted(config: dict[str, Any], kind: str, widest: int) -> None:
    config = {"vocab_size": 320, **config}
    tensors = schema_of(config).kinds[kind]
    weights = max(t.shape[0] * t.shape[1] for t in tensors if t.quantised)
    assert layer_bytes(tensors, ParallelLayout(), BATCH, ONE) == 2 * (16 * (2 * 128 + widest) + weights)
