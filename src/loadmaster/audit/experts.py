"""Defects of models with experts in BF16, stored one by one or all in one tensor."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.audit import damage as d
from loadmaster.audit.case import CUT, SPREAD, Case, cases_of
from loadmaster.audit.damage import double_rows, half_rows, weight

L1, L2 = (rf"layers\.{i}\." for i in (1, 2))
_EXPERT = d.missing(L1 + r"mlp\.experts\.5\.", "expert 5 of a layer is missing", "expert-missing")
_STACK = r"layers\.1\.block_sparse_moe\.input_linear\.weight$"


def expert_cases() -> Iterator[Case]:
    """Yield defects of models with experts in BF16, stored one by one or all in one tensor."""
    yield from _qwen3_moe_cases()
    yield from _one_by_one_cases()
    yield from _stacked_cases()


def _qwen3_moe_cases() -> Iterator[Case]:
    yield from cases_of(
        "qwen3-moe",
        ("expert-missing", _EXPERT),
        ("expert-missing", _EXPERT, {"rank": SPREAD}),
        ("expert-missing", _EXPERT, {"rank": CUT}),
        ("router-missing", weight(L1, r"mlp\.gate")),
        (
            "expert-half",
            d.changed(
                "shape-small", L1 + r"mlp\.experts\.5\.up_proj", half_rows, "up_proj of an expert has half its rows"
            ),
        ),
        (
            "expert-double",
            d.changed(
                "shape-large", L1 + r"mlp\.experts\.5\.up_proj", double_rows, "up_proj of an expert has twice its rows"
            ),
        ),
        ("expert-unknown", d.added(r"layers\.1\.mlp\.experts\.7\.", "layers.1.mlp.experts.8.", "a ninth expert, of 8")),
        (
            "config-narrower",
            d.config(
                "config-size", "the config says half the experts' size", "model.layers.", moe_intermediate_size=32
            ),
        ),
        (
            "config-wider",
            d.config(
                "config-size", "the config says twice the experts' size", "model.layers.", moe_intermediate_size=128
            ),
        ),
        ("fewer-experts", d.config("config-size", "the config says 4 of 8 experts", "model.layers.", num_experts=4)),
        (
            "more-experts",
            d.config("config-size", "the config says 16 experts, stored are 8", "model.layers.", num_experts=16),
        ),
    )


def _one_by_one_cases() -> Iterator[Case]:
    """Yield defects of other models that store experts one by one."""
    yield from cases_of("qwen2-moe", ("shared-gate-missing", weight(L2, r"mlp\.shared_expert_gate")))
    yield from cases_of(
        "mixtral",
        ("w2-missing", weight(L1, r"block_sparse_moe\.experts\.5\.w2")),
        ("w1-missing", weight(L1, r"block_sparse_moe\.experts\.5\.w1"), {"rank": SPREAD}),
    )
    yield from cases_of(
        "qwen3-next",
        ("A_log-missing", d.missing(L1 + r"linear_attn\.A_log", "A_log of a recurrent layer is missing")),
        ("conv-missing", d.missing(L1 + r"linear_attn\.conv1d", "the convolution of a recurrent layer is missing")),
        ("expert-missing", _EXPERT),
    )
    yield from cases_of(
        "glm-4.5-air",
        ("router-bias-missing", d.missing(L1 + r"mlp\.gate\.e_score", "e_score_correction_bias is missing")),
        ("expert-missing", _EXPERT),
    )


def _stacked_cases() -> Iterator[Case]:
    """Yield defects of models that store all experts of a layer in one tensor."""
    yield from cases_of(
        "gpt-oss-bf16",
        ("sinks-missing", d.missing(L1 + r"self_attn\.sinks", "the sinks of a layer are missing")),
        (
            "stack-missing",
            d.missing(L1 + r"mlp\.experts\.down_proj$", "the experts' down_proj is missing", "expert-missing"),
        ),
        (
            "stack-bias-missing",
            d.missing(L1 + r"mlp\.experts\.down_proj_bias", "the bias of it is missing", "expert-missing"),
        ),
        (
            "stack-half",
            d.changed("shape-small", L1 + r"mlp\.experts\.down_proj$", half_rows, "it holds 4 of 8 experts"),
        ),
    )
    yield from cases_of(
        "granite-moe",
        ("stack-missing", d.missing(_STACK, "the experts' input_linear is missing", "expert-missing")),
        ("stack-half", d.changed("shape-small", _STACK, half_rows, "it holds 4 of 8 experts")),
    )
    yield from cases_of("granite-moe-shared", ("shared-missing", weight(L1, r"shared_mlp\.output_linear")))
    yield from cases_of(
        "llama-4",
        ("router-missing", weight(L1, r"feed_forward\.router")),
        (
            "stack-missing",
            d.missing(L1 + r"feed_forward\.experts\.down_proj", "the experts' down_proj is missing", "expert-missing"),
        ),
    )
