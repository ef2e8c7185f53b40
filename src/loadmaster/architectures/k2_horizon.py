"""K2-Horizon: Qwen's mixture of experts with a gate for attention, whose values come from experts too in layers that have them.

Each of the value experts is a whole projection, which ranks divide by heads whatever divides the other experts. vLLM stores
queries and keys in the order that its rotary embedding wants.

Sources: ``k2_horizon.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.qwen_moe import sparse_layers
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.errors import UnsupportedError

HORIZON: Final = "K2HorizonForCausalLM"
MOST_VALUES: Final = 64
"""How many experts may make values: each has its own name."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, inner = c.size("hidden_size"), c.size("moe_intermediate_size")
    gate_bias, shared = c.flag("moe_gate_bias"), c.size("num_shared_experts", 0, least=0)
    num_experts = c.size("num_experts")
    sparse = blocks.experts(hidden, inner, num_experts)
    if gate_bias:
        sparse += (Tensor("moe.router_bias", (num_experts,), keep="F32"),)
    if shared:
        sparse += blocks.gated_mlp(hidden, inner * shared, logical="shared")
    attention = _attention(c)
    num_values = c.size("mova_num_experts", 0, least=0)
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*blocks.norms(hidden), *attention, *blocks.gated_mlp(hidden, c.size("intermediate_size", inner))),
            "sparse": (
                *blocks.norms(hidden),
                *(_with_values(c, attention, num_values, bias=gate_bias) if num_values else attention),
                *sparse,
            ),
        },
        layers=sparse_layers(c),
    )


def _attention(c: Config) -> tuple[Tensor, ...]:
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    bias, normed = c.flag("attention_bias"), c.flag("query_key_norm")
    q_norm, k_norm = (heads * head, kv_heads * head) if normed else (0, 0)
    gate = (linear("attn.gate", heads * head, hidden, by_rows(head)),)
    return (
        *blocks.attention(hidden, heads, kv_heads, head, bias=bias, out_bias=bias, q_norm=q_norm, k_norm=k_norm),
        *(gate if c.values.get("attention_gate_func") is not None else ()),
    )


def _with_values(c: Config, attention: tuple[Tensor, ...], count: int, *, bias: bool) -> tuple[Tensor, ...]:
    """Return attention whose values are made by experts, each of which has no bias."""
    if count > MOST_VALUES:
        raise UnsupportedError(f"config.json: mova_num_experts is {count}; supported: up to {MOST_VALUES}")
    hidden, _, kv_heads, head = blocks.heads_of(c)
    return (
        *(t for t in attention if t.name not in ("attn.v", "attn.v_bias")),
        Tensor("attn.router", (count, hidden), usual=("F32",)),
        *((Tensor("attn.router_bias", (count,), keep="F32"),) if bias else ()),
        *(linear(f"attn.values.{n}", kv_heads * head, hidden, by_rows(head, repeat=True)) for n in range(count)),
    )


_STORED: Final = {
    "attn.gate": "self_attn.gate_proj.weight",
    "attn.router": "self_attn.v_router.weight",
    "attn.router_bias": "self_attn.v_router.bias",
    **{f"attn.values.{n}": f"self_attn.v_experts.{n}.weight" for n in range(MOST_VALUES)},
}

FAMILY = Family(
    name="k2_horizon",
    architectures=(HORIZON,),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **{name: blocks.LAYER + stored for name, stored in _STORED.items()},
        **blocks.experts_spelling(),
        "moe.router_bias": blocks.LAYER + "mlp.gate.bias",
        **blocks.gated_mlp_spelling("mlp.shared_experts", logical="shared"),
    },
    native=(
        *(p for p in blocks.DECODER_NATIVE if not {"attn.q", "attn.q_bias"} & {*p.parts}),
        Param("{block}.self_attn.qk_proj.weight", ("attn.q", "attn.k")),
        Param("{block}.self_attn.qk_proj.bias", ("attn.q_bias", "attn.k_bias")),
        Param("{block}.self_attn.v_proj.weight", ("attn.v",)),
        Param("{block}.self_attn.v_proj.bias", ("attn.v_bias",)),
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _STORED.items()),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={HORIZON: OF_VLLM},
)
