"""Qwen4Exp (Qwen3.8-Flash-Next): Qwen3.5's attentions and experts on residual streams, with tables of n-grams in some layers.

There are no norms before attention and MLP, nor after the last layer: what mixes the ``hc_count`` streams has its own norms.
All streams cross every cut; on the last stage a mixer makes one hidden state of them. Full attention selects tokens with an
indexer, whose queries and key are one matrix. The MTP layer is stored under ``mtp.``: full attention and experts, with its own
mixer; it shares the model's embedding and head, and its experts are stored one by one, or in one tensor as those of the body.

Sources: ``qwen4_exp`` of transformers 5.24; ``qwen4_exp/nvidia/model.py`` and ``mtp.py`` in ``vllm/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks, gated_streams, ple
from loadmaster.architectures.config import Config
from loadmaster.architectures.qwen3_5 import LINEAR_NATIVE, LINEAR_SPELLING, linear_attention
from loadmaster.architectures.qwen3_next import FULL, LINEAR, gated_attention
from loadmaster.architectures.qwen_moe import num_experts, shared_expert
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, embedding, linear
from loadmaster.architectures.spelling import Spelling, respelled
from loadmaster.errors import UnsupportedError

_FULL: Final = (FULL, "indexed_attention", "qwen_sparse_attention")
"""Names of the other layers: in the release, in transformers, and in transformers before 5.18."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, streams = c.size("hidden_size"), gated_streams.num_streams(c)
    sparse = (*blocks.experts(hidden, c.size("moe_intermediate_size"), num_experts(c)), *shared_expert(c))
    mixers = (*gated_streams.mixer(c, "attn.hc"), *gated_streams.mixer(c, "mlp.hc"))
    kinds = {
        LINEAR: (*linear_attention(c), *mixers, *sparse),
        FULL: (*gated_attention(c), *_indexer(c), *mixers, *sparse),
    }
    layers = _layer_types(c)
    for layer, rows in ple.ple_rows(c).items():
        kind = f"{layers[layer]}, table of layer {layer}"
        kinds[kind] = (*kinds[layers[layer]], *ple.ple(c, rows, streams))
        layers[layer] = kind
    num_drafts = c.size("mtp_num_hidden_layers", 1, least=0)
    if num_drafts > 1:
        raise UnsupportedError("config.json: mtp_num_hidden_layers other than 0 and 1 is not supported")
    drafted = (
        *(linear(f"mtp.fc_{part}", hidden, hidden) for part in ("embedding", "hidden")),
        Tensor("mtp.enorm", (hidden,)),
        Tensor("mtp.hnorm", (streams * hidden,)),
        *gated_streams.last_mixer(c, "mtp.hc"),
    )
    kinds["mtp"] = (*kinds[FULL], *drafted)
    return Schema(
        top=(*(t for t in embedding(c) if t.name != "norm"), *gated_streams.last_mixer(c, "hc")),
        kinds=kinds,
        layers=tuple(layers),
        drafts=("mtp",) * num_drafts,
        carries=((), *((gated_streams.carried(c),),) * (len(layers) - 1)),
    )


def _layer_types(c: Config) -> list[str]:
    """Return the attention of each layer: from the list if there is one, else full in every fourth."""
    num_layers, interval = c.size("num_hidden_layers"), c.size("full_attention_interval", 4)
    default = [LINEAR if (layer + 1) % interval else FULL for layer in range(num_layers)]
    types = c.types("layer_types", (LINEAR, *_FULL), num_layers, default)
    return [LINEAR if kind == LINEAR else FULL for kind in types]


def _indexer(c: Config) -> tuple[Tensor, ...]:
    if (heads := c.optional_size("indexer_n_heads")) is None:
        return ()
    head, keys = c.size("indexer_head_dim"), c.size("indexer_kv_heads", 1)
    norms = (Tensor(f"indexer.{part}_norm", (head,)) for part in ("q", "k"))
    return (linear("indexer.qk", (heads + keys) * head, c.size("hidden_size")), *norms)


_INDEXER: Final = {
    "indexer.qk": "self_attn.indexer.index_qk_proj.weight",
    "indexer.q_norm": "self_attn.indexer.q_layernorm.weight",
    "indexer.k_norm": "self_attn.indexer.k_layernorm.weight",
}
_BLOCK: Spelling = {
    **blocks.ATTENTION_SPELLING,
    **{logical: blocks.LAYER + stored for logical, stored in _INDEXER.items()},
    **gated_streams.spelling("attn.hc", blocks.LAYER + "attn_hyper_connection"),
    **gated_streams.spelling("mlp.hc", blocks.LAYER + "mlp_hyper_connection"),
    **blocks.SHARED_EXPERT_SPELLING,
}
_TOP: Spelling = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    **gated_streams.spelling("hc", "model.hyper_connection_mixer", last=True),
}
_DRAFT: Final = {
    **{f"mtp.fc_{part}": f"mtp.fc_{part}.weight" for part in ("embedding", "hidden")},
    "mtp.enorm": "mtp.pre_fc_norm_embedding.weight",
    "mtp.hnorm": "mtp.pre_fc_norm_hidden.weight",
    **gated_streams.spelling("mtp.hc", "mtp.hyper_connection_mixer", last=True),
}
_STACKED, _ONE_BY_ONE = blocks.stacked_experts_spelling(), blocks.experts_spelling()
_BODY: Spelling = {**_TOP, **LINEAR_SPELLING, **_BLOCK, **ple.SPELLING}
_WITHIN = ("model.", "model.language_model.")

FAMILY = Family(
    name="qwen4_exp",
    architectures=("Qwen4ExpForCausalLM",),
    schema=schema,
    spelling={**_BODY, **_STACKED},
    variants=(
        {**_BODY, **_ONE_BY_ONE},
        *(respelled({**_BODY, **experts}, _WITHIN) for experts in (_STACKED, _ONE_BY_ONE)),
    ),
    drafts=tuple(
        {**respelled({**_BLOCK, **experts}, ("model.layers.", "mtp.layers.")), **_DRAFT}
        for experts in (_ONE_BY_ONE, _STACKED)
    ),
    native=(
        *(p for p in blocks.TOP_NATIVE if p.parts != ("norm",)),
        *gated_streams.native("hyper_connection_mixer", "hc", last=True),
        *LINEAR_NATIVE,
        *blocks.ATTENTION_NATIVE,
        *(Param(f"{{block}}.{stored}", (logical,)) for logical, stored in _INDEXER.items()),
        *gated_streams.native("{block}.attn_hyper_connection", "attn.hc"),
        *gated_streams.native("{block}.mlp_hyper_connection", "mlp.hc"),
        *blocks.EXPERTS_NATIVE,
        *blocks.SHARED_EXPERT_NATIVE,
        *ple.NATIVE,
        *(Param("{block}." + stored.removeprefix("mtp."), (logical,)) for logical, stored in _DRAFT.items()),
    ),
    waived=(
        blocks.INV_FREQ,
        (r"(.*\.)?hyper_connection_mixer\.block_inject_weight\.weight", "nothing follows the last mixer"),
        (r".*\.ple_embedding\.(hashstats_.*|token_lookup)", "counts of a hash, and a lookup that the table replaces"),
    ),
    unchecked={
        "Qwen4ExpForCausalLM": "names and shapes are those of transformers' class and, of the MTP layer, of vLLM's loader; "
        "number formats were not seen in a release"
    },
)
