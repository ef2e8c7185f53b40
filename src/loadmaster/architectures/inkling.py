"""Inkling: attention with relative positions, short convolutions, and experts whose gate and up alternate by row.

The first layers may be dense. MTP layers are dense too, and stored under ``model.mtp.``; all of them share ``chain_norm``, which
is read with the first. Embedding and head are stored with the rows of the padded vocabulary (``vocab_size``). vLLM takes the rows
of gate and up of routed experts apart; here they stay as stored, in pairs that no cut divides.

Sources: ``inkling`` of transformers 5.24; ``inkling/nvidia`` in ``vllm/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import inkling_blocks as blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.deepseek import mlp_types
from loadmaster.architectures.inkling_config import described, local_layers, sizes_of
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows

_DEFAULTS: Final = {
    **{"hidden_size": 6144, "intermediate_size": 24576, "moe_intermediate_size": 3072, "vocab_size": 201024},
    **{"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 66},
    **{"swa_num_attention_heads": 64, "swa_num_key_value_heads": 16, "swa_head_dim": 128, "sliding_window_size": 512},
    **{"d_rel": 16, "rel_extent": 1024, "n_routed_experts": 256, "n_shared_experts": 2},
}
"""Of ``InklingTextConfig``."""

_SUPPORTED: Final = {
    **dict.fromkeys(("use_embed_norm", "use_sconv", "use_gate_bias", "use_global_scale", "shared_expert_sink"), True),
    **dict.fromkeys(("q_bias", "o_bias"), False),
}
"""Keys that only vLLM's class has; transformers' has the parts that go with these values."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    c = described(c, _DEFAULTS)
    for key, supported in _SUPPORTED.items():
        require(c, key, supported)
    local, mtp = local_layers(c), c.section("mtp_config")
    drafts = c.size("num_mtp_layers", mtp.size("num_nextn_predict_layers", 0, least=0), least=0)
    windows = c.sizes("mtp_local_layer_ids") or mtp.sizes("local_layer_ids")
    chained = c.flag("chain_hidden_post_norm", mtp.flag("chain_hidden_post_norm"))
    attentions = {i: (*blocks.attention(c, is_local=i), *_norms(c, is_local=i)) for i in (True, False)}
    mlps = {"dense": _dense(c), "sparse": blocks.experts(c, shared=c.size("n_shared_experts", least=0))}
    types = mlp_types(c, dense=c.size("dense_mlp_idx", 0, least=0))
    layers = tuple(f"{mlp}{', window' if i in local else ''}" for i, mlp in enumerate(types))
    kinds = {kind: (*attentions["window" in kind], *mlps[kind.partition(",")[0]]) for kind in layers}
    of_drafts = {
        f"mtp {i}": (*attentions[i in windows], *mlps["dense"], *_draft(c, chained=chained and i == 0))
        for i in range(drafts)
    }
    return Schema(
        top=(*blocks.top(c), Tensor("embed_norm", (c.size("hidden_size"),))),
        kinds=kinds | of_drafts,
        layers=layers,
        drafts=tuple(of_drafts),
        unread=() if drafts else ((r"model\.mtp\..*", "config.json has no num_mtp_layers, the number of MTP layers"),),
    )


def _norms(c: Config, *, is_local: bool) -> tuple[Tensor, ...]:
    hidden, head = c.size("hidden_size"), sizes_of(c, is_local=is_local)[2]
    of = {"input_norm": hidden, "post_norm": hidden, "attn.q_norm": head, "attn.k_norm": head}
    return tuple(Tensor(name, (size,)) for name, size in of.items())


def _dense(c: Config) -> tuple[Tensor, ...]:
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    return (
        Tensor("mlp.gate_up", (2 * inner, hidden), by_rows(2)),
        Tensor("mlp.down", (hidden, inner), by_columns()),
        Tensor("mlp.scale", (1,), usual=("F32",)),
    )


def _draft(c: Config, *, chained: bool) -> tuple[Tensor, ...]:
    hidden = c.size("hidden_size")
    norms = ("hidden_norm", "embed_norm", *(("chain_norm",) if chained else ()))
    return (Tensor("mtp.input_proj", (hidden, 2 * hidden)), *(Tensor(f"mtp.{name}", (hidden,)) for name in norms))


_OWN: Final = {
    **{f"attn.{name}_norm": f"attn.{name}_norm.weight" for name in ("q", "k")},
    **{"mlp.gate_up": "mlp.w13_dn.weight", "mlp.down": "mlp.w2_md.weight", "mlp.scale": "mlp.global_scale"},
}
_MTP: Final = "model.mtp.layers.{layer}."
_OF_MTP: Final = ("input_proj", "hidden_norm", "embed_norm")

FAMILY = Family(
    name="inkling",
    architectures=("InklingForConditionalGeneration", "InklingForCausalLM"),
    schema=schema,
    spelling=blocks.spelling(_OWN),
    drafts=(
        {
            **blocks.of_layer(_OWN, _MTP + "transformer_block."),
            **{f"mtp.{name}": f"{_MTP}{name}.weight" for name in _OF_MTP},
            "mtp.chain_norm": "model.mtp.chain_norm.weight",
        },
    ),
    native=(
        *blocks.native(_OWN),
        *(Param(f"{{block}}.{name}.weight", (f"mtp.{name}",)) for name in (*_OF_MTP, "chain_norm")),
    ),
    waived=blocks.TOWERS,
    section="text_config",
    unchecked=dict.fromkeys(
        ("InklingForConditionalGeneration", "InklingForCausalLM"),
        "names and shapes are those of transformers' class, those of MTP layers of vLLM's loader; number formats were not seen",
    ),
)
