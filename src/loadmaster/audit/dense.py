"""Defects of dense models in BF16: the only ones whose completeness vLLM checks by default."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.audit import damage as d
from loadmaster.audit.case import CUT, LAST, Case, cases_of
from loadmaster.audit.damage import double_rows, half_rows, transposed, weight

L1, L2 = (rf"layers\.{i}\." for i in (1, 2))
_LAYER_TWO = d.missing(L2, "layer 2 is missing", "layer-missing", "model.layers.2.")
_O_PROJ = r"layers\.1\.self_attn\.o_proj\.weight$"
_OTHER_FILE = "model-00009-of-00002.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 5360000000\n"
_FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def dense_cases() -> Iterator[Case]:
    """Yield defects of dense models in BF16: the only ones whose completeness vLLM checks by default."""
    yield from _tensor_cases()
    yield from _file_cases()
    yield from _config_cases()
    yield from _other_presets()


def _tensor_cases() -> Iterator[Case]:
    """Yield tensors that are missing, surplus, renamed, or of another shape or number format."""
    yield from cases_of(
        "qwen3",
        ("o_proj-missing", weight(L1, r"self_attn\.o_proj")),
        ("k_proj-missing", weight(L1, r"self_attn\.k_proj")),
        ("k_proj-missing", weight(L1, r"self_attn\.k_proj"), {"rank": CUT}),
        ("down_proj-missing", weight(L1, r"mlp\.down_proj")),
        ("q_norm-missing", weight(L1, r"self_attn\.q_norm")),
        ("embedding-missing", d.missing("embed_tokens", "the embedding is missing")),
        ("head-missing", d.missing("^lm_head", "the head is missing, and not tied")),
        ("head-missing", d.missing("^lm_head", "the head is missing, and not tied"), {"rank": LAST}),
        ("layer-missing", _LAYER_TWO),
        ("tensor-unknown", d.added(_O_PROJ, "layers.1.self_attn.z_proj.weight", "one tensor more, z_proj, in a layer")),
        (
            "bias-unknown",
            d.added(
                r"layers\.(\d)\.input_layernorm\.weight$",
                r"layers.\1.self_attn.o_proj.bias",
                "every o_proj has a bias, which the config does not say",
            ),
        ),
        ("prefix-renamed", d.renamed(r"^model\.", "transformer.", "every name begins with another prefix")),
        ("o_proj-renamed", d.renamed(r"layers\.1\.self_attn\.o_proj", "layers.1.self_attn.out_proj", "one is renamed")),
        ("o_proj-half", d.changed("shape-small", _O_PROJ, half_rows, "o_proj has half its rows")),
        (
            "gate_proj-double",
            d.changed("shape-large", L1 + r"mlp\.gate_proj\.", double_rows, "gate_proj has twice its rows"),
        ),
        (
            "k_proj-double",
            d.changed("shape-large", L1 + r"self_attn\.k_proj\.", double_rows, "k_proj has twice its rows"),
        ),
        ("embedding-double", d.changed("shape-large", "embed_tokens", double_rows, "the embedding has twice its rows")),
        (
            "gate_proj-transposed",
            d.changed("transposed", L1 + r"mlp\.gate_proj\.", transposed, "gate_proj is transposed"),
        ),
        ("norm-float32", d.cast("dtype", L1 + "input_layernorm", "float32", "a norm is stored as F32", harmless=True)),
        ("o_proj-int8", d.cast("dtype", _O_PROJ, "int8", "o_proj is stored as I8")),
        ("embedding-float8", d.cast("dtype", "embed_tokens", "float8_e4m3fn", "the embedding is FP8, without a scale")),
        ("o_proj-float8", d.cast("dtype", _O_PROJ, "float8_e4m3fn", "o_proj is FP8, without a scale")),
        (
            "claims-fp8",
            d.config("precision", "the config says FP8, and all is BF16", "model.layers.", quantization_config=_FP8),
        ),
    )


def _file_cases() -> Iterator[Case]:
    """Yield defects of shards and of the index."""
    yield from cases_of(
        "qwen3",
        ("shard-truncated", d.rewritten_shard(1, lambda b: b[:-4096], "the last shard is truncated by 4 KiB")),
        ("shard-pointer", d.rewritten_shard(1, lambda b: _POINTER, "the last shard is a Git LFS pointer")),
        ("shard-empty", d.rewritten_shard(1, lambda b: b"", "the last shard has no bytes")),
        ("shard-missing", d.lost_shard(1)),
        ("shard-missing-no-index", d.unindexed(d.lost_shard(1))),
        ("shard-missing-no-index", d.unindexed(d.lost_shard(1)), {"rank": LAST}),
        ("shard-forgotten", d.index(d.forget_shard, "the index knows nothing of the last shard")),
        ("tensor-forgotten", d.index(d.forget_tensor, "the index does not have one tensor", harmless=True)),
        (
            "tensor-twice",
            d.twice(r"q_proj|o_proj", "the last shard holds old values of what the index puts in the first"),
        ),
        (
            "shard-stale",
            d.stale_shard(_OTHER_FILE, _O_PROJ, "a shard of another run, which the index lacks", harmless=True),
        ),
        ("shard-stale-no-index", d.unindexed(d.stale_shard(_OTHER_FILE, _O_PROJ, "a shard of another run lies there"))),
        (
            "consolidated",
            d.stale_shard("consolidated.safetensors", ".", "the same model lies there once more, older", harmless=True),
        ),
        (
            "consolidated-part",
            d.stale_shard("consolidated.safetensors", "norm", "a consolidated file, of norms alone", harmless=True),
        ),
    )


def _config_cases() -> Iterator[Case]:
    """Yield configs that say something else than the tensors."""
    tied = d.config(
        "tied-head", "the config ties a head that differs", "lm_head.weight", harmless=True, tie_word_embeddings=True
    )
    yield from cases_of(
        "qwen3",
        ("tied-by-config", tied),
        ("tied-by-config", tied, {"rank": LAST}),
        (
            "config-narrower",
            d.config(
                "config-size", "the config says half the intermediate size", "model.layers.", intermediate_size=128
            ),
        ),
        (
            "config-wider",
            d.config(
                "config-size", "the config says twice the intermediate size", "model.layers.", intermediate_size=512
            ),
        ),
        (
            "config-fewer-heads",
            d.config("config-size", "the config says half the heads", "model.layers.", num_attention_heads=4),
        ),
        (
            "config-fewer-kv",
            d.config("config-size", "the config says half the heads of keys", "model.layers.", num_key_value_heads=2),
        ),
        (
            "config-shallower",
            d.config("config-size", "the config says 3 of 4 layers", "model.layers.3.", num_hidden_layers=3),
        ),
        (
            "config-deeper",
            d.config(
                "config-size",
                "the config says 6 layers, 4 are stored",
                "model.layers.4.",
                "model.layers.5.",
                num_hidden_layers=6,
            ),
        ),
        (
            "config-vocabulary",
            d.config(
                "config-size",
                "the config says fewer tokens",
                "model.embed_tokens.weight",
                "lm_head.weight",
                vocab_size=256,
            ),
        ),
    )


def _other_presets() -> Iterator[Case]:
    yield from cases_of(
        "smollm2",
        ("embedding-missing", d.missing("embed_tokens", "the tied embedding is missing")),
        ("embedding-missing", d.missing("embed_tokens", "the tied embedding is missing"), {"rank": LAST}),
        (
            "untied-by-config",
            d.config(
                "tied-head", "the config does not tie, no head is stored", "lm_head.weight", tie_word_embeddings=False
            ),
        ),
    )
    for preset in ("llama", "mistral", "olmo-2", "olmo-3", "gemma-3"):
        yield from cases_of(preset, ("o_proj-missing", weight(L1, r"self_attn\.o_proj")))
    yield from cases_of("llama", ("layer-missing", _LAYER_TWO, {"rank": LAST}))
    yield from cases_of("gemma-3", ("norm-missing", weight(L1, "pre_feedforward_layernorm")))
    yield from cases_of("olmo-2", ("norm-missing", weight(L1, "post_feedforward_layernorm")))
    yield from cases_of(
        "phi-4",
        ("qkv_proj-missing", weight(L1, r"self_attn\.qkv_proj")),
        (
            "gate_up_proj-half",
            d.changed("shape-small", L1 + r"mlp\.gate_up_proj\.", half_rows, "gate_up_proj has half its rows"),
        ),
        (
            "qkv_proj-double",
            d.changed("shape-large", L1 + r"self_attn\.qkv_proj\.", double_rows, "qkv_proj has twice its rows"),
        ),
    )
    yield from cases_of(
        "qwen2", ("q_bias-missing", d.missing(L1 + r"self_attn\.q_proj\.bias$", "the bias of q_proj is missing"))
    )
