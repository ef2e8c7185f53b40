"""Step-3 (321B-A38B): attention whose queries come from one shared latent, with one head of keys and values; routed experts.

``q_proj`` makes the latent (``share_q_dim``), and ``wq`` the queries of all heads. The latent, the keys and the values are held
by every rank. All experts of a layer are in three tensors. ``moe_layers_enum`` says which layers have experts: else all but the
first.

Sources: ``step3_text.py`` and ``step3_vl.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import (
    OF_VLLM,
    Family,
    Param,
    Schema,
    Tensor,
    by_columns,
    by_rows,
    embedding,
    linear,
)
from loadmaster.architectures.spelling import packed
from loadmaster.errors import ConfigError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "num_attention_groups", 1)
    hidden, heads, head = c.size("hidden_size"), c.size("num_attention_heads"), c.size("head_dim", 256)
    latent, num_layers = c.size("share_q_dim", head), c.size("num_hidden_layers")
    attention = (
        *blocks.norms(hidden),
        linear("attn.q_a", latent, hidden),
        *(linear(f"attn.{part}", head, hidden) for part in ("k", "v")),
        Tensor("attn.q_a_norm", (latent,)),
        linear("attn.q_b", heads * head, latent, by_rows(head)),
        linear("attn.o", hidden, heads * head, by_columns(head)),
    )
    inner, shared = c.size("moe_intermediate_size"), c.size("share_expert_dim")
    sparse = blocks.experts(hidden, inner, c.size("moe_num_experts"))
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size"))),
            "sparse": (*attention, *sparse, *blocks.gated_mlp(hidden, shared, logical="shared")),
        },
        layers=tuple("sparse" if layer in _sparse(c, num_layers) else "dense" for layer in range(num_layers)),
    )


def _sparse(c: Config, num_layers: int) -> frozenset[int]:
    given = c.values.get("moe_layers_enum")
    if given is None:
        return frozenset(range(1, num_layers))
    if not isinstance(given, str) or not all(number.strip().isdecimal() for number in given.split(",")):
        raise ConfigError("config.json: moe_layers_enum must be a string such as 3,4,5")
    return frozenset(int(number) for number in given.split(","))


_OWN: Final = {
    "attn.q_a_norm": "self_attn.inter_norm.weight",
    "attn.q_b": "self_attn.wq.weight",
    "attn.o": "self_attn.o_proj.weight",
}

FAMILY = Family(
    name="step3_text",
    architectures=("Step3TextForCausalLM",),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        **blocks.NORMS_SPELLING,
        "attn.q_a": blocks.LAYER + "self_attn.q_proj.weight",
        **{f"attn.{part}": f"{blocks.LAYER}self_attn.{part}_proj.weight" for part in ("k", "v")},
        **{name: blocks.LAYER + stored for name, stored in _OWN.items()},
        **blocks.gated_mlp_spelling(),
        "moe.router": blocks.LAYER + "moe.gate.weight",
        **{
            name: spelled
            for part in ("gate", "up", "down")
            for name, spelled in packed(f"{blocks.LAYER}moe.{part}_proj.weight", f"moe.{part}", stacked=True).items()
        },
        **blocks.gated_mlp_spelling("share_expert", logical="shared"),
    },
    native=(
        *blocks.TOP_NATIVE,
        *blocks.NORMS_NATIVE,
        Param("{block}.self_attn.qkv_proj.weight", ("attn.q_a", "attn.k", "attn.v")),
        *(Param(f"{{block}}.{stored}", (name,)) for name, stored in _OWN.items()),
        *blocks.gated_mlp_native(),
        *blocks.EXPERTS_NATIVE,
        *blocks.gated_mlp_native("mlp.shared_experts", logical="shared"),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={"Step3TextForCausalLM": OF_VLLM},
)
