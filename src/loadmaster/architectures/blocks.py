"""The parts that families share, each as its three tables: attention with heads, the gated MLP, routed experts.

A family's file combines them and adds its own tensors. Spellings are those of the models' classes in transformers, under
``model.layers.{layer}.``; `loadmaster.architectures.schema.respelled` gives them another prefix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import (
    LANGUAGE_ONLY,
    Param,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    by_vocabulary,
    linear,
)
from loadmaster.architectures.spelling import Packed, Spelling, packed, respelled
from loadmaster.errors import UnsupportedError

LAYER = "model.layers.{layer}."

TOP_SPELLING = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}

TOP_NATIVE = (
    Param("embed_tokens.weight", ("embed",), stage="first"),
    Param("norm.weight", ("norm",), stage="last"),
    Param("lm_head.weight", ("head",), otherwise="embed_tokens.weight", stage="last"),
)

INV_FREQ = (r"(.*\.)?rotary_emb\.inv_freq", "rotary frequencies are recomputed")
"""Waived everywhere: older checkpoints store these values, which are computed from the config."""

VISION = (r"(model\.)?(vision_tower|vision_model|multi_modal_projector)\..*", LANGUAGE_ONLY)

# Attention with heads --------------------------------------------------------------------------------------------------


def heads_of(c: Config) -> tuple[int, int, int, int]:
    """Return the hidden size, the heads of queries, those of keys and values, and the elements of a head."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    return hidden, heads, c.size("num_key_value_heads", heads), c.size("head_dim", hidden // heads)


def attention(
    hidden: int,
    heads: int,
    kv_heads: int,
    head: int,
    *,
    bias: bool = False,
    out_bias: bool = False,
    q_norm: int = 0,
    k_norm: int = 0,
    v_head: int | None = None,
    groups: int = 1,
) -> tuple[Tensor, ...]:
    """Return q, k, v, o of ``heads`` × ``head``; norms of queries and keys of that many elements where given.

    ``v_head`` are the elements of a head of values, where these are others. ``groups`` are those in which a checkpoint packs
    q, k and v (`Packed`). Key and value heads are repeated where there are fewer of them than ranks. A norm over one head is
    on all ranks; a norm over all heads is cut with them.
    """
    v_head = v_head or head
    kv, rows = by_rows(head, repeat=True), by_rows(v_head, repeat=True)
    parts = [("q", heads * head, by_rows(head)), ("k", kv_heads * head, kv), ("v", kv_heads * v_head, rows)]
    rows_of = {"q": head, "k": head}
    tensors = [
        replace(linear(f"attn.{part}", size, hidden, cut), groups=groups, head=rows_of.get(part, 0))
        for part, size, cut in parts
    ]
    tensors.append(linear("attn.o", hidden, heads * v_head, by_columns(v_head)))
    if bias:
        tensors += [
            Tensor(f"attn.{part}_bias", (size,), cut, groups=groups, head=rows_of.get(part, 0))
            for part, size, cut in parts
        ]
    if out_bias:
        tensors.append(Tensor("attn.o_bias", (hidden,)))
    if q_norm:
        tensors.append(Tensor("attn.q_norm", (q_norm,), by_rows(head) if q_norm == heads * head != head else None))
    if k_norm:
        tensors.append(Tensor("attn.k_norm", (k_norm,), kv if k_norm == kv_heads * head != head else None))
    return tuple(tensors)


ATTENTION_SPELLING = {
    "attn.q": LAYER + "self_attn.q_proj.weight",
    "attn.k": LAYER + "self_attn.k_proj.weight",
    "attn.v": LAYER + "self_attn.v_proj.weight",
    "attn.o": LAYER + "self_attn.o_proj.weight",
    "attn.q_bias": LAYER + "self_attn.q_proj.bias",
    "attn.k_bias": LAYER + "self_attn.k_proj.bias",
    "attn.v_bias": LAYER + "self_attn.v_proj.bias",
    "attn.o_bias": LAYER + "self_attn.o_proj.bias",
    "attn.q_norm": LAYER + "self_attn.q_norm.weight",
    "attn.k_norm": LAYER + "self_attn.k_norm.weight",
}

ATTENTION_NATIVE = (
    Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.v")),
    Param("{block}.self_attn.qkv_proj.bias", ("attn.q_bias", "attn.k_bias", "attn.v_bias")),
    Param("{block}.self_attn.o_proj.weight", ("attn.o",)),
    Param("{block}.self_attn.o_proj.bias", ("attn.o_bias",)),
    Param("{block}.self_attn.q_norm.weight", ("attn.q_norm",)),
    Param("{block}.self_attn.k_norm.weight", ("attn.k_norm",)),
)

# The gated MLP ---------------------------------------------------------------------------------------------------------


def gated_mlp(hidden: int, inner: int, *, logical: str = "mlp", bias: bool = False) -> tuple[Tensor, ...]:
    """Return gate, up and down, ``[inner, hidden]`` and back, under ``logical`` names (``mlp.gate`` …)."""
    tensors = [
        linear(f"{logical}.gate", inner, hidden, by_rows()),
        linear(f"{logical}.up", inner, hidden, by_rows()),
        linear(f"{logical}.down", hidden, inner, by_columns()),
    ]
    if bias:
        tensors += [
            Tensor(f"{logical}.gate_bias", (inner,), by_rows()),
            Tensor(f"{logical}.up_bias", (inner,), by_rows()),
            Tensor(f"{logical}.down_bias", (hidden,)),
        ]
    return tuple(tensors)


def gated_mlp_spelling(stored: str = "mlp", *, logical: str = "mlp") -> dict[str, str]:
    """Return the spelling of a gated MLP that is stored under ``model.layers.{layer}.`` + ``stored``."""
    return {
        f"{logical}.{part}{suffix}": f"{LAYER}{stored}.{part}_proj.{kind}"
        for part in ("gate", "up", "down")
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }


def gated_mlp_native(param: str = "mlp", *, logical: str = "mlp") -> tuple[Param, ...]:
    """Return the parameters of a gated MLP under ``{block}.`` + ``param``."""
    return (
        Param(f"{{block}}.{param}.gate_up_proj.weight", (f"{logical}.gate", f"{logical}.up")),
        Param(f"{{block}}.{param}.gate_up_proj.bias", (f"{logical}.gate_bias", f"{logical}.up_bias")),
        Param(f"{{block}}.{param}.down_proj.weight", (f"{logical}.down",)),
        Param(f"{{block}}.{param}.down_proj.bias", (f"{logical}.down_bias",)),
    )


# The MLP without a gate ------------------------------------------------------------------------------------------------


def plain_mlp(hidden: int, inner: int, *, bias: bool = False) -> tuple[Tensor, ...]:
    """Return up and down, ``[inner, hidden]`` and back."""
    tensors = [linear("mlp.up", inner, hidden, by_rows()), linear("mlp.down", hidden, inner, by_columns())]
    if bias:
        tensors += [Tensor("mlp.up_bias", (inner,), by_rows()), Tensor("mlp.down_bias", (hidden,))]
    return tuple(tensors)


PLAIN_MLP_NATIVE = (
    Param("{block}.mlp.up_proj.weight", ("mlp.up",)),
    Param("{block}.mlp.up_proj.bias", ("mlp.up_bias",)),
    Param("{block}.mlp.down_proj.weight", ("mlp.down",)),
    Param("{block}.mlp.down_proj.bias", ("mlp.down_bias",)),
)

# Routed experts --------------------------------------------------------------------------------------------------------


def experts(
    hidden: int, inner: int, num_experts: int, *, router_bias: bool = False, latent: int | None = None
) -> tuple[Tensor, ...]:
    """Return the router and the experts' gate, up and down; ``router_bias`` is DeepSeek's correction bias.

    Experts read and yield ``latent`` elements where that is given, instead of ``hidden``.
    """
    width = latent or hidden
    tensors = [Tensor("moe.router", (num_experts, hidden), usual=("F32",))]
    if router_bias:
        # It decides between nearly equal scores, so it keeps its precision.
        tensors.append(Tensor("moe.router_bias", (num_experts,), keep="F32"))
    tensors += [
        linear("moe.gate", inner, width, by_rows(), experts=num_experts),
        linear("moe.up", inner, width, by_rows(), experts=num_experts),
        linear("moe.down", width, inner, by_columns(), experts=num_experts),
    ]
    return tuple(tensors)


def experts_spelling(
    stored: str = "mlp", names: Iterable[str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, str]:
    """Return the spelling of experts stored one by one under ``stored``: Mixtral's names are w1, w3, w2."""
    gate, up, down = names
    return {
        "moe.router": f"{LAYER}{stored}.gate.weight",
        "moe.router_bias": f"{LAYER}{stored}.gate.e_score_correction_bias",
        "moe.gate": f"{LAYER}{stored}.experts.{{expert}}.{gate}.weight",
        "moe.up": f"{LAYER}{stored}.experts.{{expert}}.{up}.weight",
        "moe.down": f"{LAYER}{stored}.experts.{{expert}}.{down}.weight",
    }


def stacked_experts_spelling(stored: str = "mlp") -> dict[str, str | Packed]:
    """Return the spelling of experts that are stored in one tensor, gate before up: transformers' names since v5."""
    return {
        "moe.router": f"{LAYER}{stored}.gate.weight",
        "moe.router_bias": f"{LAYER}{stored}.gate.e_score_correction_bias",
        **packed(f"{LAYER}{stored}.experts.gate_up_proj", "moe.gate", "moe.up", stacked=True),
        **packed(f"{LAYER}{stored}.experts.down_proj", "moe.down", stacked=True),
    }


EXPERTS_NATIVE = (
    Param("{block}.mlp.gate.weight", ("moe.router",)),
    Param("{block}.mlp.gate.e_score_correction_bias", ("moe.router_bias",)),
    Param("{block}.mlp.experts.w13_weight", ("moe.gate", "moe.up")),
    Param("{block}.mlp.experts.w2_weight", ("moe.down",)),
)

SHARED_EXPERT_SPELLING = {
    **gated_mlp_spelling("mlp.shared_expert", logical="shared"),
    "shared.router": LAYER + "mlp.shared_expert_gate.weight",
}
"""Qwen's shared expert, with the gate that weighs it."""

SHARED_EXPERT_NATIVE = (
    *gated_mlp_native("mlp.shared_expert", logical="shared"),
    Param("{block}.mlp.shared_expert_gate.weight", ("shared.router",)),
)

# Norms ----------------------------------------------------------------------------------------------------------------

NORMS_SPELLING = {
    "input_norm": LAYER + "input_layernorm.weight",
    "post_norm": LAYER + "post_attention_layernorm.weight",
}

NORMS_NATIVE = (
    Param("{block}.input_layernorm.weight", ("input_norm",)),
    Param("{block}.post_attention_layernorm.weight", ("post_norm",)),
)


def norms(hidden: int) -> tuple[Tensor, ...]:
    """Return the two norms of a layer, before its attention and before its MLP."""
    return (Tensor("input_norm", (hidden,)), Tensor("post_norm", (hidden,)))


def norm_biases(hidden: int, *names: str) -> tuple[Tensor, ...]:
    """Return the biases of layer norms: of ``input_norm``, say."""
    return tuple(Tensor(f"{name}_bias", (hidden,)) for name in names)


NORM_BIASES_SPELLING = {
    "norm_bias": "model.norm.bias",
    "input_norm_bias": LAYER + "input_layernorm.bias",
    "post_norm_bias": LAYER + "post_attention_layernorm.bias",
}

NORM_BIASES_NATIVE = (
    Param("norm.bias", ("norm_bias",), stage="last"),
    Param("{block}.input_layernorm.bias", ("input_norm_bias",)),
    Param("{block}.post_attention_layernorm.bias", ("post_norm_bias",)),
)

# What most decoders have in common ------------------------------------------------------------------------------------

DECODER_SPELLING = {**TOP_SPELLING, **NORMS_SPELLING, **ATTENTION_SPELLING, **gated_mlp_spelling()}

DECODER_NATIVE = (*TOP_NATIVE, *NORMS_NATIVE, *ATTENTION_NATIVE, *gated_mlp_native())

# The MTP layer of DeepSeek and GLM, stored after the decoder layers ----------------------------------------------------


def draft(c: Config) -> tuple[Tensor, ...]:
    """Return what an MTP layer has in addition to a decoder layer; DeepSeek's stores an embedding and a head too."""
    hidden, vocab = c.size("hidden_size"), c.size("vocab_size")
    return (
        Tensor("mtp.eh_proj", (hidden, 2 * hidden)),
        Tensor("mtp.enorm", (hidden,)),
        Tensor("mtp.hnorm", (hidden,)),
        Tensor("mtp.norm", (hidden,)),
        Tensor("mtp.embed", (vocab, hidden), by_vocabulary(), optional="the draft's own embedding and head"),
        Tensor("mtp.head", (vocab, hidden), by_vocabulary(), optional="the draft's own embedding and head"),
    )


DRAFT_SPELLING = {
    "mtp.eh_proj": LAYER + "eh_proj.weight",
    "mtp.enorm": LAYER + "enorm.weight",
    "mtp.hnorm": LAYER + "hnorm.weight",
    "mtp.norm": LAYER + "shared_head.norm.weight",
    "mtp.embed": LAYER + "embed_tokens.weight",
    "mtp.head": LAYER + "shared_head.head.weight",
}


def draft_apart(hidden: int) -> tuple[Tensor, ...]:
    """Return what an MTP layer that is stored apart has in addition to a decoder layer, without embedding and head."""
    return (
        Tensor("mtp.eh_proj", (hidden, 2 * hidden)),
        *(Tensor(f"mtp.{norm}", (hidden,)) for norm in ("enorm", "hnorm", "norm")),
    )


def with_draft_apart(c: Config, made: Schema, kind: str) -> Schema:
    """Return a schema with the MTP layer that is stored apart: a layer of a ``kind``. Where the config has none, it is unread.

    Raises:
        UnsupportedError: it has several, of which the names are not known.
    """
    count = c.size("num_nextn_predict_layers", 0, least=0)
    if count > 1:
        raise UnsupportedError(f"config.json: num_nextn_predict_layers {count} is not supported; supported: 0 and 1")
    if not count:
        return replace(made, unread=(*made.unread, (r"mtp\..*", "config.json says nothing of MTP layers")))
    draft_layer = (*made.kinds[kind], *draft_apart(c.size("hidden_size")))
    return replace(made, kinds={**made.kinds, "mtp": draft_layer}, drafts=("mtp",))


def draft_apart_spelling(of_layer: Spelling) -> dict[str, str | Packed]:
    """Return the spelling of one MTP layer that is stored under ``mtp.``, whose layer is spelled as ``of_layer``."""
    return {
        **respelled({n: s for n, s in of_layer.items() if n not in TOP_SPELLING}, ("model.layers.", "mtp.layers.")),
        "mtp.eh_proj": "mtp.fc.weight",
        "mtp.enorm": "mtp.pre_fc_norm_embedding.weight",
        "mtp.hnorm": "mtp.pre_fc_norm_hidden.weight",
        "mtp.norm": "mtp.norm.weight",
    }


DRAFT_NATIVE = (
    Param("{block}.eh_proj.weight", ("mtp.eh_proj",)),
    Param("{block}.enorm.weight", ("mtp.enorm",)),
    Param("{block}.hnorm.weight", ("mtp.hnorm",)),
    Param("{block}.shared_head.norm.weight", ("mtp.norm",)),
    Param("{block}.embed_tokens.weight", ("mtp.embed",), otherwise="embed_tokens.weight"),
    Param("{block}.shared_head.head.weight", ("mtp.head",), otherwise="lm_head.weight"),
)
