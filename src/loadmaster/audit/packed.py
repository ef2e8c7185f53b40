"""Defects of packed formats, and of scales for a whole tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadmaster.audit import damage as d
from loadmaster.audit.case import Case, cases_of
from loadmaster.audit.damage import scale
from loadmaster.synth import PRESETS

L1 = r"layers\.1\."


def packed_cases() -> Iterator[Case]:
    """Yield defects of packed formats and of scales for a whole tensor."""
    o_proj, down_proj = r"self_attn\.o_proj", r"mlp\.down_proj"
    yield from cases_of(
        "llama-w4a16",
        ("scale-missing", scale(L1, o_proj, "weight_scale")),
        ("packed-missing", d.missing(L1 + o_proj + r"\.weight_packed", "the packed codes are missing")),
        (
            "group-64",
            d.config(
                "scale-grid",
                "the config says groups of 64, stored are 32",
                "model.layers.",
                quantization_config=_w4a16(64),
            ),
        ),
    )
    yield from cases_of("llama-w4a16-asym", ("zeros-missing", scale(L1, o_proj, "weight_zero_point")))
    yield from cases_of(
        "llama-awq",
        ("scales-missing", scale(L1, down_proj, "scales")),
        ("zeros-missing", scale(L1, down_proj, "qzeros")),
        (
            "group-64",
            d.quantization("scale-grid", "the config says groups of 64, stored are 32", "model.layers.", group_size=64),
        ),
    )
    yield from cases_of(
        "llama-gptq",
        ("scales-missing", scale(L1, down_proj, "scales")),
        ("codes-missing", d.missing(L1 + down_proj + r"\.qweight", "the codes are missing")),
    )
    yield from cases_of(
        "llama-fp8-static",
        ("scale-missing", scale(L1, o_proj, "weight_scale")),
        ("input-scale-missing", scale(L1, o_proj, "input_scale")),
        ("q-scale-missing", scale(L1, r"self_attn\.q_proj", "weight_scale")),
    )
    yield from cases_of("llama-modelopt-fp8", ("scale-missing", scale(L1, o_proj, "weight_scale")))
    yield from cases_of(
        "mixtral-fp8-static",
        ("expert-scale-missing", scale(L1, r"block_sparse_moe\.experts\.5\.w2", "weight_scale")),
        ("input-scale-missing", scale(L1, r"block_sparse_moe\.experts\.5\.w2", "input_scale")),
        (
            "input-scales-differ",
            d.changed(
                "scale-grid",
                L1 + r"block_sparse_moe\.experts\.5\.w1\.input_scale",
                lambda t: t * 2,
                "w1 and w3 of an expert, which have one input, have two input scales",
            ),
        ),
    )
    yield from cases_of("phi-4-gptq", ("scales-missing", scale(L1, r"self_attn\.qkv_proj", "scales")))
    yield from cases_of("olmo-2-w4a16", ("scale-missing", scale(L1, o_proj, "weight_scale")))
    yield from cases_of("qwen3-awq", ("zeros-missing", scale(L1, o_proj, "qzeros")))


def _w4a16(group: int) -> dict[str, Any]:
    config: dict[str, Any] = PRESETS["llama-w4a16"].config_of(tiny=True)["quantization_config"]
    groups = {n: {**g, "weights": {**g["weights"], "group_size": group}} for n, g in config["config_groups"].items()}
    return {**config, "config_groups": groups}
