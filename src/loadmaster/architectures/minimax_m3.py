"""MiniMax-M3: block-sparse attention, whose indexer has a head for each head of keys, and experts beside a shared one.

The first layers have full attention and a dense MLP; lists in the config say which. MTP layers are always sparse, in both
respects, and are stored under ``model.mtp.layers.``; ``num_mtp_modules`` says how many there are. Inside transformers' class gate
and up of MLPs are one tensor; it saves them apart.

Sources: ``minimax_m3_vl`` of transformers 5.24; ``minimax_m3/nvidia/{model,mtp}.py`` in ``vllm/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import UnsupportedError

_DEFAULTS: Final = {
    **{"hidden_size": 6144, "intermediate_size": 3072, "dense_intermediate_size": 12288, "vocab_size": 200064},
    **{"num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128},
    **{"num_local_experts": 128, "shared_intermediate_size": 3072},
}
"""Of ``MiniMaxM3VLTextConfig``."""

MLPS: Final = ("dense", "sparse")
ATTENTIONS: Final = ("full_attention", "minimax_m3_sparse")
"""The types of layers, as 0 and 1 stand for them in MiniMax's lists."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    c = Config({**_DEFAULTS, **c.values})
    require(c, "use_qk_norm", True)
    require(c, "qk_norm_type", "per_head")
    require(c, "attention_output_gate", False)
    require(c, "n_shared_experts", 1)
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    full = (*blocks.norms(hidden), *blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head))
    attentions = dict(zip(ATTENTIONS, (full, (*full, *_indexer(c))), strict=True))
    mlps = dict(zip(MLPS, (blocks.gated_mlp(hidden, c.size("dense_intermediate_size")), _experts(c)), strict=True))
    num_drafts = c.size("num_mtp_modules", 0, least=0)
    return Schema(
        top=embedding(c),
        kinds={
            **{f"{mlp}/{kind}": (*attentions[kind], *mlps[mlp]) for mlp in MLPS for kind in ATTENTIONS},
            "mtp": (*attentions[ATTENTIONS[1]], *mlps[MLPS[1]], *_draft(hidden)),
        },
        layers=_layers(c),
        drafts=("mtp",) * num_drafts,
        unread=() if num_drafts else ((r"(.*\.)?mtp\.layers\..*", "config.json has no num_mtp_modules, their number"),),
    )


def _layers(c: Config) -> tuple[str, ...]:
    """Return the kind of each layer, from transformers' lists of types, or from MiniMax's lists of 0 and 1."""
    count, sparse = c.size("num_hidden_layers"), c.section("sparse_attention_config")
    freq, disabled = (sparse.marks(f"sparse_{of}", count) for of in ("attention_freq", "disable_index_value"))
    mlps = c.types("mlp_layer_types", MLPS, count, [MLPS[mark] for mark in c.marks("moe_layer_freq", count)])
    attentions = c.types("layer_types", ATTENTIONS, count, [ATTENTIONS[mark] for mark in freq])
    if any(
        kind == ATTENTIONS[1] and not off for kind, off in zip(attentions, disabled or count * (True,), strict=True)
    ):
        raise UnsupportedError("config.json: sparse_disable_index_value 0 of a sparse layer is not supported")
    return tuple(f"{mlp}/{attention}" for mlp, attention in zip(mlps, attentions, strict=True))


def _indexer(c: Config) -> tuple[Tensor, ...]:
    """Return the projections that score blocks of keys. The head of keys is one, which every rank holds."""
    hidden, given = c.size("hidden_size"), c.section("sparse_attention_config")
    heads = given.size("sparse_num_index_heads", c.size("index_n_heads", 4))
    head = given.size("sparse_index_dim", c.size("index_head_dim", 128))
    return (
        linear("indexer.q_proj", heads * head, hidden, by_rows(head, repeat=True)),
        linear("indexer.k_proj", head, hidden),
        Tensor("indexer.q_norm", (head,)),
        Tensor("indexer.k_norm", (head,)),
    )


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, inner, num_experts = (c.size(k) for k in ("hidden_size", "intermediate_size", "num_local_experts"))
    return (
        *blocks.experts(hidden, inner, num_experts, router_bias=c.flag("use_routing_bias", True)),
        *blocks.gated_mlp(hidden, c.size("shared_intermediate_size"), logical="shared"),
    )


def _draft(hidden: int) -> tuple[Tensor, ...]:
    norms = (Tensor(f"mtp.{name}", (hidden,)) for name in ("enorm", "hnorm", "norm"))
    return (replace(linear("mtp.eh_proj", hidden, 2 * hidden), rarely=True), *norms)


_INDEXER: Final = ("q_proj", "k_proj", "q_norm", "k_norm")
_STORED: Final[Spelling] = {
    **blocks.DECODER_SPELLING,
    **{f"indexer.{part}": f"{blocks.LAYER}self_attn.index_{part}.weight" for part in _INDEXER},
    **blocks.experts_spelling("block_sparse_moe", ("w1", "w3", "w2")),
    "moe.router_bias": blocks.LAYER + "block_sparse_moe.e_score_correction_bias",
    **blocks.gated_mlp_spelling("block_sparse_moe.shared_experts", logical="shared"),
}
_INSIDE: Final[Spelling] = {
    **_STORED,
    **{f"indexer.{part}": f"{blocks.LAYER}self_attn.indexer.{part}.weight" for part in _INDEXER},
    **blocks.stacked_experts_spelling(),
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **packed(blocks.LAYER + "mlp.gate_up_proj.weight", "mlp.gate", "mlp.up"),
    **packed(blocks.LAYER + "mlp.shared_experts.gate_up_proj.weight", "shared.gate", "shared.up"),
}
"""The names inside transformers' class."""

_MTP: Final = "model.mtp.layers.{layer}."
_OWN: Final = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "norm": "final_layernorm"}
_OF_LAYER: Final = {n: s for n, s in _STORED.items() if n not in blocks.TOP_SPELLING}

FAMILY = Family(
    name="minimax_m3",
    architectures=("MiniMaxM3SparseForCausalLM",),
    schema=schema,
    spelling=_STORED,
    variants=(_INSIDE,),
    drafts=(
        {
            **respelled(_OF_LAYER, (blocks.LAYER, _MTP + "transformer_layer.")),
            **{f"mtp.{name}": f"{_MTP}{stored}.weight" for name, stored in _OWN.items()},
        },
    ),
    native=(
        *blocks.DECODER_NATIVE,
        *(Param(f"{{block}}.self_attn.index_{part}.weight", (f"indexer.{part}",)) for part in _INDEXER),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={
        "MiniMaxM3SparseForCausalLM": "names and shapes are those of transformers' class, those of MTP layers of vLLM's loader"
    },
)
