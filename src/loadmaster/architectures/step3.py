"""Step-3.5 and Step-3.7's language model: sliding layers with more heads, a gate for each head, experts in three stacks.

All experts of a layer are stored in three tensors, gate, up and down; newer copies store them one by one. MTP layers are stored
after the decoder layers: each has its own head, and the model's embedding. Configs of the authors have other keys than
those that transformers writes, and lists that go on over the MTP layers.

Sources: the published parameters of Step-3.7-Flash, vision and MTP included; ``modeling_step3p7.py`` of transformers and its
conversions; ``step3p5.py``, ``step3p5_mtp.py`` and ``step3p7.py`` in ``vllm/model_executor/models``, which renames the head of
MTP layers (``transformer.shared_head.output``).
"""

from __future__ import annotations

from dataclasses import replace

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import FULL, SLIDING, require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.errors import ConfigError

DENSE, SPARSE = "dense", "sparse"
OF_AUTHORS = {
    "num_key_value_heads": "num_attention_groups",
    "n_routed_experts": "moe_num_experts",
    "share_expert_dim": "share_expert_dims",
    "num_nextn_predict_layers": "num_mtp_layers",
}
"""Keys of transformers' configs, and those of the authors' configs."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    given = {key: value for key, value in c.values.items() if value is not None}
    c = Config({key: given.get(other) for key, other in OF_AUTHORS.items()} | given)
    for key, only in (("attention_bias", False), ("mlp_bias", False), ("use_moe_router_bias", True)):
        require(c, key, only)
    hidden, num_layers = c.size("hidden_size"), c.size("num_hidden_layers")
    num_blocks = num_layers + c.size("num_nextn_predict_layers", 0, least=0)
    mlps, attentions = _mlp_types(c, num_blocks), _types(c, "layer_types", (FULL, SLIDING), num_blocks)
    tensors = {
        DENSE: lambda: blocks.gated_mlp(hidden, c.size("intermediate_size")),
        SPARSE: lambda: _experts(c),
        FULL: lambda: _attention(c, c.size("num_attention_heads")),
        SLIDING: lambda: _attention(c, _sliding_heads(c)),
    }
    made = {name: tensors[name]() for name in dict.fromkeys((*mlps, *attentions))}
    kinds: dict[str, tuple[Tensor, ...]] = {}
    named: list[str] = []
    for number, (mlp, attention) in enumerate(zip(mlps, attentions, strict=True)):
        more, name = ((), "") if number < num_layers else (_draft(c), ", mtp")
        named.append(f"{mlp}, {attention}{name}")
        kinds[named[-1]] = (*blocks.norms(hidden), *made[attention], *made[mlp], *more)
    return Schema(embedding(c), kinds, layers=tuple(named[:num_layers]), drafts=tuple(named[num_layers:]))


def _types(c: Config, key: str, known: tuple[str, str], count: int) -> tuple[str, ...]:
    """Return the type of each decoder and MTP layer; the list of the latter may be apart. Without a list it is the first."""
    types = (*c.strings(key), *c.strings(f"mtp_{key}")) or (known[0],) * count
    if len(types) < count or not {*types} <= {*known}:
        raise ConfigError(f"config.json: {key} must give {' or '.join(known)} for each of {count} layers, MTP included")
    return types[:count]


def _mlp_types(c: Config, count: int) -> tuple[str, ...]:
    """Return for each layer whether it is dense or sparse, from the list of types or from the numbers of the sparse ones."""
    if c.values.get("mlp_layer_types") is not None:
        return _types(c, "mlp_layer_types", (DENSE, SPARSE), count)
    given = c.values.get("moe_layers_enum")
    numbers = given.replace(" ", "").split(",") if isinstance(given, str) else given
    if not isinstance(numbers, list) or not all(str(n).isdecimal() for n in numbers):
        says = "config.json: mlp_layer_types or moe_layers_enum must say which layers have experts"
        raise ConfigError(says, hint="moe_layers_enum is a list, or a string such as 3,4,5")
    sparse = {int(n) for n in numbers}
    return tuple(SPARSE if number in sparse else DENSE for number in range(count))


def _sliding_heads(c: Config) -> int:
    """Return the heads of sliding layers. The authors' object for them repeats what they have in common with the others."""
    other = c.section("attention_other_setting")
    _, _, kv_heads, head = blocks.heads_of(c)
    require(other, "attention_type", SLIDING)
    for key, only in (("num_attention_groups", kv_heads), ("head_dim", head)):
        require(other, key, only)
    own = c.optional_size("num_sliding_attention_heads") or other.optional_size("num_attention_heads")
    return own or c.size("num_attention_heads")


def _attention(c: Config, heads: int) -> tuple[Tensor, ...]:
    hidden, _, kv_heads, head = blocks.heads_of(c)
    tensors = blocks.attention(hidden, heads, kv_heads, head, q_norm=head, k_norm=head)
    gate = (linear("attn.gate", heads, hidden, by_rows()),) if c.flag("use_head_wise_attn_gate", True) else ()
    return (*tensors, *gate)


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, inner = c.size("hidden_size"), c.size("moe_intermediate_size")
    routed = blocks.experts(hidden, inner, c.size("n_routed_experts"), router_bias=True)
    return (*routed, *blocks.gated_mlp(hidden, c.size("share_expert_dim"), logical="shared"))


def _draft(c: Config) -> tuple[Tensor, ...]:
    return tuple(replace(t, optional=None) for t in blocks.draft(c) if t.name != "mtp.embed")


_COMMON: Spelling = {
    **blocks.DECODER_SPELLING,
    **{name: blocks.DRAFT_SPELLING[name] for name in ("mtp.eh_proj", "mtp.enorm", "mtp.hnorm")},
    "attn.gate": blocks.LAYER + "self_attn.g_proj.weight",
    "mtp.norm": blocks.LAYER + "transformer.shared_head.norm.weight",
    "mtp.head": blocks.LAYER + "transformer.shared_head.output.weight",
}
_ONE_BY_ONE: Spelling = {
    **_COMMON,
    **blocks.gated_mlp_spelling("share_expert", logical="shared"),
    **blocks.experts_spelling("moe"),
    "moe.router_bias": blocks.LAYER + "moe.router_bias",
}
_STACKED: Spelling = {
    **_ONE_BY_ONE,
    **packed(blocks.LAYER + "moe.gate_proj.weight", "moe.gate", stacked=True),
    **packed(blocks.LAYER + "moe.up_proj.weight", "moe.up", stacked=True),
    **packed(blocks.LAYER + "moe.down_proj.weight", "moe.down", stacked=True),
}
_INSIDE: Spelling = {
    **_COMMON,
    **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    **blocks.stacked_experts_spelling(),
}

FAMILY = Family(
    name="step3",
    architectures=("Step3p5ForCausalLM",),
    schema=schema,
    spelling=_STACKED,
    variants=(_ONE_BY_ONE, _INSIDE),
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.self_attn.g_proj.weight", ("attn.gate",)),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
        *blocks.DRAFT_NATIVE,
    ),
    waived=(blocks.INV_FREQ,),
)
