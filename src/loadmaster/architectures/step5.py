"""Step-5: Step-3.5 with an indexer in layers with full attention, which selects blocks of tokens.

The indexer's queries are divided into groups, each of which selects by itself and stays whole on a rank; where there are more
ranks, several hold the same group. Its keys, of one head, are on every rank. vLLM reads its scale (``ssmax_s``), and does not
use it; its MTP layers may have no experts.

Sources: ``vllm/models/step5/nvidia`` and ``vllm/transformers_utils/configs/step5.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import step3
from loadmaster.architectures.blocks import LAYER
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL
from loadmaster.architectures.schema import OF_VLLM, Param, Schema, Tensor, by_rows, linear
from loadmaster.errors import ConfigError

STEP5: Final = "Step5ForCausalLM"


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    num_layers, given = c.size("num_hidden_layers"), {k: v for k, v in c.values.items() if v is not None}
    usual = {
        "moe_layers_enum": given.get("moe_layer_list", [*range(1, num_layers)]),
        "layer_types": given.get("layer_types_with_mtp", given.get("layer_types")),
        "share_expert_dim": c.size("moe_intermediate_size") * c.size("moe_top_k", 4),
    }
    made = step3.schema(Config({**usual, **given} | {"layer_types": usual["layer_types"]}))
    if "sparse_config" not in given:
        return made
    indexer = _indexer(c)
    return replace(
        made,
        kinds={
            kind: (*tensors, *indexer) if kind.split(", ")[1] == FULL else tensors
            for kind, tensors in made.kinds.items()
        },
    )


def _indexer(c: Config) -> tuple[Tensor, ...]:
    of, hidden = c.section("sparse_config"), c.size("hidden_size")
    heads, size = of.size("sparse_indexer_num_heads", 16), of.size("proxy_dim", 256)
    groups = of.size("index_tp_size", of.size("num_provider_groups", 4))
    if heads % groups:
        raise ConfigError(f"{of.where}: sparse_indexer_num_heads {heads} are not divided by {groups} groups")
    each = heads // groups
    return (
        linear("indexer.q", heads * size, hidden, by_rows(each * size, repeat=True)),
        *(linear(f"indexer.{part}", size, hidden) for part in ("k", "z")),
        linear("indexer.w", heads, hidden, by_rows(each, repeat=True)),
        *(Tensor(f"indexer.{name}", (size,)) for name in ("q_norm", "k_norm", "k_norm_bias")),
        Tensor("indexer.scale", (c.size("num_attention_heads"),), usual=("F32",)),
    )


_STORED: Final = {
    **{
        f"indexer.{part}": f"self_attn.sparse_indexer_{part}.weight"
        for part in ("q", "k", "z", "w", "q_norm", "k_norm")
    },
    "indexer.k_norm_bias": "self_attn.sparse_indexer_k_norm.bias",
    "indexer.scale": "self_attn.ssmax_s",
}
_SPELLING: Final = {name: LAYER + stored for name, stored in _STORED.items()}

FAMILY = replace(
    step3.FAMILY,
    name="step5",
    architectures=(STEP5,),
    schema=schema,
    spelling={**step3.FAMILY.spelling, **_SPELLING},
    variants=tuple({**spelling, **_SPELLING} for spelling in step3.FAMILY.variants),
    native=(*step3.FAMILY.native, *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _STORED.items())),
    unchecked={STEP5: OF_VLLM},
)
