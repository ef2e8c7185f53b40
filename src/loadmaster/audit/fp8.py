"""Defects of FP8 in blocks: the DeepSeek family with its indexers, experts and drafts, and Qwen3."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.audit import damage as d
from loadmaster.audit.case import CUT, LAST, SPREAD, Case, cases_of
from loadmaster.audit.damage import half_columns, half_rows, scale, weight

L1, L4 = (rf"layers\.{i}\." for i in (1, 4))
WK = r"self_attn\.indexer\.wk"
DRAFT, LAST_DRAFT = {"draft": "mtp"}, {"draft": "mtp", "rank": LAST}


def fp8_cases() -> Iterator[Case]:
    """Yield defects of the DeepSeek family: FP8 in blocks, indexers, experts, drafts."""
    yield from _missing_cases()
    yield from _stored_otherwise_cases()
    yield from _draft_cases()
    yield from _deepseek_cases()
    yield from _other_presets()


def _missing_cases() -> Iterator[Case]:
    """Yield tensors and scales that are missing, of GLM-5.1; and ``weights_proj`` of an indexer with a scale."""
    expert = d.missing(L4 + r"mlp\.experts\.5\.", "expert 5 of a layer is missing", "expert-missing")
    weights_proj = d.both(
        "precision",
        "weights_proj is FP8 too, with a scale",
        d.cast("precision", L4 + r"self_attn\.indexer\.weights_proj\.", "float8_e4m3fn", ""),
        d.added(L4 + WK + r"\.weight_scale_inv$", "layers.4.self_attn.indexer.weights_proj.weight_scale_inv", ""),
    )
    yield from cases_of(
        "glm-5.1-fp8",
        ("o_proj-scale-missing", scale(L4, r"self_attn\.o_proj")),
        ("o_proj-scale-missing", scale(L4, r"self_attn\.o_proj"), {"rank": LAST}),
        ("o_proj-missing", weight(L4, r"self_attn\.o_proj")),
        ("norm-missing", weight(L4, "input_layernorm")),
        ("q_a_proj-scale-missing", scale(L4, r"self_attn\.q_a_proj")),
        ("kv_a_proj-missing", weight(L4, r"self_attn\.kv_a_proj_with_mqa")),
        ("wk-scale-missing", scale(L4, WK)),
        ("wk-scale-missing", scale(L4, WK), {"rank": LAST}),
        ("wk-missing", d.missing(L4 + WK + r"\.", "wk of an indexer is missing, with its scale")),
        ("weights_proj-missing", weight(L4, r"self_attn\.indexer\.weights_proj")),
        ("weights_proj-quantised", weights_proj),
        ("indexer-missing", d.missing(L4 + r"self_attn\.indexer\.", "the indexer of a layer is missing")),
        (
            "indexers-of-5.2",
            d.missing(r"layers\.[345]\.self_attn\.indexer\.", "three layers have no indexer, as in GLM-5.2"),
        ),
        ("router-bias-missing", d.missing(L4 + r"mlp\.gate\.e_score", "e_score_correction_bias is missing")),
        (
            "expert-part-missing",
            d.missing(L4 + r"mlp\.experts\.5\.up_proj\.", "one projection of expert 5", "expert-missing"),
        ),
        ("expert-missing", expert),
        ("expert-missing", expert, {"rank": SPREAD}),
        ("expert-scale-missing", scale(L4, r"mlp\.experts\.5\.down_proj")),
        ("shared-expert-missing", d.missing(L4 + r"mlp\.shared_experts\.", "the shared expert of a layer is missing")),
        ("layer-missing", d.missing(L4, "layer 4 is missing", "layer-missing", "model.layers.4.")),
        ("layer-missing", d.missing(L4, "layer 4 is missing", "layer-missing", "model.layers.4."), {"rank": LAST}),
        ("embedding-missing", d.missing("embed_tokens", "the embedding is missing")),
        ("head-missing", d.missing("^lm_head", "the head is missing, and not tied"), {"rank": LAST}),
    )


def _stored_otherwise_cases() -> Iterator[Case]:
    """Yield tensors, scales and shards of GLM-5.1 that are stored otherwise than the config says."""
    yield from cases_of(
        "glm-5.1-fp8",
        ("tensor-unknown", d.added(L4 + r"input_layernorm", "layers.4.pre_layernorm", "one norm more, in a layer")),
        ("scales-renamed", d.renamed("weight_scale_inv$", "weight_scale", "all scales are spelled weight_scale")),
        (
            "o_proj-plain",
            d.dequantised(L4 + r"self_attn\.o_proj", "o_proj is stored as BF16, without a scale", scales=False),
        ),
        (
            "o_proj-plain-with-scale",
            d.dequantised(L4 + r"self_attn\.o_proj", "o_proj is BF16, its scale still there", scales=True),
        ),
        (
            "wk-plain-with-scale",
            d.dequantised(L4 + WK, "wk is stored as BF16, its scale left behind", scales=True, harmless=True),
        ),
        (
            "scale-half",
            d.changed(
                "scale-grid", L4 + r"self_attn\.o_proj\.weight_scale_inv", half_rows, "a scale has half its rows"
            ),
        ),
        (
            "wk-scale-half",
            d.changed("scale-grid", L4 + WK + r"\.weight_scale_inv", half_columns, "wk's scale lacks columns"),
        ),
        (
            "not-quantised",
            d.config("precision", "the config does not say FP8, and all is", "model.layers.", quantization_config=...),
        ),
        ("shard-missing-no-index", d.unindexed(d.lost_shard(1))),
        ("shard-missing-no-index", d.unindexed(d.lost_shard(1)), {"rank": LAST}),
        (
            "consolidated-part",
            d.stale_shard("consolidated.safetensors", "norm", "a consolidated file, of norms alone", harmless=True),
        ),
    )


def _draft_cases() -> Iterator[Case]:
    """Yield defects of the MTP layer of GLM-5.1, and of the indexers of GLM-5.2."""
    yield from cases_of(
        "glm-5.1-fp8",
        ("draft-missing", d.missing(r"layers\.6\.", "the MTP layer is missing", "draft-missing", "layer 6"), DRAFT),
        (
            "eh_proj-missing",
            d.missing(r"layers\.6\.eh_proj", "eh_proj of the MTP layer is missing", "draft-missing"),
            DRAFT,
        ),
        (
            "draft-scale-missing",
            d.missing(r"layers\.6\.self_attn\.o_proj\.weight_scale", "a scale of it is missing", "draft-missing"),
            DRAFT,
        ),
        (
            "draft-wk-scale-missing",
            d.missing(r"layers\.6\." + WK + r"\.weight_scale", "the scale of its wk", "draft-missing"),
            DRAFT,
        ),
        (
            "draft-expert-missing",
            d.missing(r"layers\.6\.mlp\.experts\.5\.", "an expert of it is missing", "draft-missing"),
            DRAFT,
        ),
        ("draft-plain", d.dequantised(r"layers\.6\..*", "the MTP layer is stored as BF16", scales=False), DRAFT),
        (
            "draft-silent",
            d.config(
                "config-size",
                "the config does not say that there is one",
                "model.layers.6.",
                num_nextn_predict_layers=0,
            ),
        ),
        (
            "ragged-wk",
            d.nothing("block-cut", "hidden size 448: the indexer's last block is ragged"),
            {"overrides": {"hidden_size": 448}},
        ),
    )
    yield from cases_of(
        "glm-5.2-fp8",
        (
            "indexers-unknown",
            d.config(
                "config-size", "the config shares no indexers, but layers have none", "model.layers.", index_topk_freq=1
            ),
        ),
        (
            "indexer-missing",
            d.missing(r"layers\.6\.self_attn\.indexer\.", "the indexer of a layer that selects is missing"),
        ),
    )


def _deepseek_cases() -> Iterator[Case]:
    """Yield scales, experts, the draft and cuts inside a block, of DeepSeek-V3."""
    yield from cases_of(
        "deepseek-v3",
        ("kv_a_proj-scale-missing", scale(L4, r"self_attn\.kv_a_proj_with_mqa")),
        ("shared-scale-missing", scale(L4, r"mlp\.shared_experts\.down_proj")),
        (
            "fewer-experts",
            d.config("config-size", "the config says 4 of 8 experts", "model.layers.", n_routed_experts=4),
        ),
        (
            "draft-embedding-missing",
            d.missing(
                r"layers\.6\.embed_tokens",
                "the draft's embedding is missing, the model's is there",
                "draft-missing",
                harmless=True,
            ),
            LAST_DRAFT,
        ),
        (
            "draft-head-missing",
            d.missing(
                r"layers\.6\.shared_head\.head",
                "the draft's head is missing, the model's is there",
                "draft-missing",
                harmless=True,
            ),
            DRAFT,
        ),
        ("draft-missing", d.missing(r"layers\.6\.", "the MTP layer is missing", "draft-missing", "layer 6"), DRAFT),
        (
            "expert-cut",
            d.nothing("block-cut", "experts of 384 over two ranks: 192 rows, 1.5 blocks"),
            {"overrides": {"moe_intermediate_size": 384}, "rank": CUT},
        ),
        (
            "heads-cut",
            d.nothing("block-cut", "4 heads of 56 over two ranks, 112 rows each"),
            {"overrides": {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 24}, "rank": CUT},
        ),
        (
            "ragged-merge",
            d.nothing("block-cut", "an intermediate size of 448, 3.5 blocks, on one rank"),
            {"overrides": {"intermediate_size": 448}},
        ),
    )


def _other_presets() -> Iterator[Case]:
    yield from cases_of(
        "deepseek-v3.2",
        ("k_norm-missing", d.missing(L4 + r"self_attn\.indexer\.k_norm\.bias", "the bias of a norm is missing")),
    )
    yield from cases_of(
        "kimi-k2",
        ("expert-missing", d.missing(L4 + r"mlp\.experts\.0\.", "expert 0 of a layer is missing", "expert-missing")),
    )
    yield from cases_of("deepseek-v3-fp8-ue8m0", ("o_proj-scale-missing", scale(L4, r"self_attn\.o_proj")))
    yield from cases_of(
        "qwen3-fp8",
        ("o_proj-scale-missing", scale(L1, r"self_attn\.o_proj")),
        ("k_proj-scale-missing", scale(L1, r"self_attn\.k_proj")),
    )
    yield from cases_of(
        "qwen3-fp8",
        (
            "ragged-fusion",
            d.nothing("block-cut", "keys of 64 rows, half a block, on one rank"),
            {"overrides": {"head_dim": 16}},
        ),
    )
    yield from cases_of("qwen3-moe-fp8", ("expert-scale-missing", scale(L1, r"mlp\.experts\.5\.gate_proj")))
    yield from cases_of(
        "qwen3-moe-fp8",
        (
            "expert-cut",
            d.nothing("block-cut", "experts of 64 rows, half a block, on one rank"),
            {"overrides": {"moe_intermediate_size": 64}},
        ),
    )
    yield from cases_of(
        "qwen3-moe-fp8",
        (
            "routers-unlisted",
            d.quantization(
                "precision",
                "the config's list does not have the routers, which are BF16",
                "model.layers.",
                modules_to_not_convert=["lm_head"],
            ),
        ),
    )
    yield from cases_of(
        "minimax-m2",
        (
            "heads-cut",
            d.nothing("block-cut", "4 heads of 32 for keys over two ranks, 64 rows each"),
            {"overrides": {"head_dim": 32, "rotary_dim": 16}, "rank": CUT},
        ),
        ("expert-missing", d.missing(L1 + r".*experts\.5\.", "expert 5 of a layer is missing", "expert-missing")),
    )
