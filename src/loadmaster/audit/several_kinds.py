"""Defects of models whose layers are of several kinds: in what the layers of one kind have, and others have not."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.audit import damage as d
from loadmaster.audit.case import Case, cases_of
from loadmaster.audit.damage import half_rows

L1, L2, L3 = (rf"layers\.{i}\." for i in (1, 2, 3))


def cases_of_several_kinds() -> Iterator[Case]:
    """Yield defects of models whose layers are of several kinds."""
    yield from _linear_attention_cases()
    yield from _latent_attention_cases()
    yield from _deepseek_v4_cases()
    yield from cases_of(
        "mimo-v2.5-pro",
        ("sink-missing", d.missing(L1 + r"self_attn\.attention_sink_bias$", "an attention sink is missing")),
    )
    yield from cases_of(
        "nemotron-3-super",
        ("conv-bias-missing", d.missing(r"layers\.0\.mixer\.conv1d\.bias", "the bias of a convolution is missing")),
        ("latent-missing", d.missing(r"backbone\." + L1 + "mixer.fc1_latent", "the way into the latent is missing")),
    )
    yield from cases_of(
        "step-3.7-flash",
        ("gate-short", d.changed("shape-small", L1 + r"self_attn\.g_proj", half_rows, "half of the heads have a gate")),
        ("stack-missing", d.missing(L2 + r"moe\.up_proj", "one of three stacks of experts is missing")),
    )
    yield from cases_of(
        "minimax-m3-mxfp8",
        (
            "index-scale-missing",
            d.missing(L2 + r".*index_q_proj\.weight_scale_inv$", "a scale is missing", "scale-missing"),
        ),
    )
    yield from cases_of(
        "inkling",
        (
            "pairs-half",
            d.changed("shape-small", L2 + r"mlp\.experts\.w2_weight", half_rows, "4 of 8 experts are stored"),
        ),
        ("conv-missing", d.missing(L1 + r"attn\.v_sconv", "the convolution of values is missing")),
    )
    yield from cases_of(
        "inkling-2",
        ("query-missing", d.missing(r"attn_res\.attn_queries\.1$", "the query of a mix of snapshots is missing")),
    )
    yield from cases_of(
        "inkling-2-loop",
        ("gate-missing", d.missing(L2 + r"controllers\.attn\.forget", "a gate between two passes is missing")),
    )
    yield from cases_of(
        "gemma-4-e2b",
        ("values-missing", d.missing(L3 + r"self_attn\.v_proj", "values that other layers read too are missing")),
        ("table-half", d.changed("shape-small", "embed_tokens_per_layer", half_rows, "a table has half its rows")),
    )
    yield from cases_of(
        "gemma-4-26b-a4b",
        ("router-scale-missing", d.missing(L1 + r"router\.per_expert_scale$", "the scale of experts is missing")),
    )
    yield from cases_of(
        "muse-spark-nvfp4",
        ("stack-scale-missing", d.missing(L1 + r".*gate_up_proj_weight_scale$", "scales of a stack", "scale-missing")),
        ("gate-missing", d.missing(L2 + r"post_attention_residual_gate\.gate$", "a gate of the residual is missing")),
    )


def _linear_attention_cases() -> Iterator[Case]:
    """Yield defects of models with linear attention."""
    for preset in ("qwen3.8", "qwen3.5-moe"):
        yield from cases_of(
            preset,
            ("z-missing", d.missing(L1 + r"linear_attn\.in_proj_z\.", "the gate of a linear attention is missing")),
        )
    yield from cases_of(
        "kimi-linear",
        ("A_log-missing", d.missing(L1 + r"self_attn\.A_log$", "A_log of a linear attention is missing")),
    )
    yield from cases_of(
        "kimi-k3",
        (
            "A_log-short",  # the tiny model has fewer heads than half of what is stored
            d.changed("shape-small", L1 + r"self_attn\.A_log$", half_rows, "A_log is filled up to half", harmless=True),
        ),
        ("mix-missing", d.missing(L2 + r"mlp_res_proj\.", "the weights of residuals are missing")),
    )
    yield from cases_of(
        "qwen3.8-flash-next",
        ("slice-missing", d.missing(L1 + r".*ngram_embedding\.shard_3\.", "one of 8 slices of a table is missing")),
        ("inject-missing", d.missing(L2 + r"attn_hyper_connection\.block_inject", "what streams get is missing")),
    )
    yield from cases_of(
        "ling-3.0-flash",
        ("gate-missing", d.missing(L1 + r"attention\.g_proj", "the gate of a latent attention is missing")),
        ("decay-missing", d.missing(L2 + r"attention\.f_proj", "the decay of a linear attention is missing")),
    )
    yield from cases_of(
        "glm-5.3-flash",
        ("conv-missing", d.missing(L1 + r"self_attn\.k_conv1d", "a convolution of a linear attention is missing")),
        ("pool-missing", d.missing(L3 + r".*index_kpool_compress_ape$", "the positions of the pool are missing")),
    )


def _latent_attention_cases() -> Iterator[Case]:
    """Yield defects of models with latent attention in other names, or with more beside it."""
    yield from cases_of(
        "mistral-4",
        (
            "stack-half",
            d.changed("shape-small", L1 + r"mlp\.experts\.down_proj", half_rows, "4 of 8 experts are stored"),
        ),
    )
    yield from cases_of(
        "mistral-large-3",
        ("w2-missing", d.missing(L1 + r"experts\.5\.w2\.", "w2 of an expert is missing", "expert-missing")),
    )
    yield from cases_of(
        "mistral-large-4",
        ("latent-missing", d.missing(L3 + r"attention\.wkv_a_with_mqa", "a latent that two layers read is missing")),
    )
    yield from cases_of(
        "longcat-flash",
        ("second-missing", d.missing(L2 + r"self_attn\.1\.kv_b_proj", "the second attention of a layer lacks a part")),
        (
            "router-narrow",
            d.changed("shape-small", L1 + r"mlp\.router\.classifier", lambda t: t[:8], "no rows of zero experts"),
        ),
    )
    yield from cases_of(
        "hy4-preview",
        ("mixer-missing", d.missing(L1 + r"hc_mlp_layer\.hc_pre\.hc_base$", "the mixer of streams lacks its offset")),
    )


def _deepseek_v4_cases() -> Iterator[Case]:
    """Yield defects of DeepSeek-V4 and V4.1."""
    yield from cases_of(
        "deepseek-v4-flash",
        ("routes-missing", d.missing(L1 + r"ffn\.gate\.tid2eid$", "the experts of each token are missing")),
        ("expert-scale-missing", d.missing(L2 + r"ffn\.experts\.1\.w1\.scale", "a scale is missing", "scale-missing")),
    )
    yield from cases_of(
        "deepseek-v4-pro-0813",
        ("compressor-missing", d.missing(L2 + r"attn\.compressor\.wgate\.", "the gate of a compressor is missing")),
    )
    yield from cases_of(
        "deepseek-v4.1-flash",
        (
            "table-scale-missing",
            d.missing(L1 + r"engram\.embed\.scale$", "the scales of a table are missing", "scale-missing"),
        ),
    )
