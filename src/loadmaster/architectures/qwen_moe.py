"""Qwen2-MoE and Qwen3-MoE: routed experts in every n-th layer; Qwen2's add a shared expert with its own gate.

Sources: the released configs; ``modeling_qwen2_moe.py`` and ``modeling_qwen3_moe.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, RouterSpec, require
from loadmaster.architectures.rope import read_rope
from loadmaster.architectures.schema import Family, Schema, Tensor, embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenMoeModel(Model):
    """Experts in some layers or in all. ``window``: how many tokens each layer attends to at most; None: all."""

    attention: AttentionSpec
    window: int | None
    router: RouterSpec


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    is_qwen2 = c.values["architectures"][0] == "Qwen2MoeForCausalLM"
    attention = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=c.flag("qkv_bias", is_qwen2) or c.flag("attention_bias"),
            out_bias=c.flag("attention_bias"),
            q_norm=0 if is_qwen2 else head,
            k_norm=0 if is_qwen2 else head,
        ),
    )
    sparse = blocks.experts(hidden, c.size("moe_intermediate_size"), num_experts(c))
    if is_qwen2:
        sparse += shared_expert(c)
    return Schema(
        top=embedding(c),
        kinds={
            "dense": (*attention, *blocks.gated_mlp(hidden, c.size("intermediate_size"))),
            "sparse": (*attention, *sparse),
        },
        layers=sparse_layers(c),
    )


def read_model(c: Config) -> QwenMoeModel:
    """Return what computing the model needs."""
    require(c, "hidden_act", "silu")
    is_qwen2 = c.values["architectures"][0] == "Qwen2MoeForCausalLM"
    if is_qwen2:
        require(c, "use_sliding_window", False)
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps = c.number("rms_norm_eps", 1e-6)
    return QwenMoeModel(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(heads, kv_heads, head, norm_eps, read_rope(c), qk_norm=None if is_qwen2 else "head"),
        window=c.size("sliding_window", 4096) if c.flag("use_sliding_window") else None,
        router=RouterSpec(topk=c.size("num_experts_per_tok"), scoring="softmax", normalise=c.flag("norm_topk_prob")),
    )


def num_experts(c: Config) -> int:
    """Return the number of experts of a layer; transformers v5 saves Qwen3's as ``num_local_experts``."""
    return c.size("num_experts", c.optional_size("num_local_experts"))


def sparse_layers(c: Config) -> tuple[str, ...]:
    """Return the kind of each layer: ``sparse`` every ``decoder_sparse_step``, unless ``mlp_only_layers`` lists it."""
    step, dense = c.size("decoder_sparse_step", 1), set(c.sizes("mlp_only_layers"))
    return tuple(
        "sparse" if i not in dense and (i + 1) % step == 0 else "dense" for i in range(c.size("num_hidden_layers"))
    )


def shared_expert(c: Config) -> tuple[Tensor, ...]:
    """Return the expert that every token uses, and its gate."""
    hidden = c.size("hidden_size")
    return (
        *blocks.gated_mlp(hidden, c.size("shared_expert_intermediate_size"), logical="shared"),
        Tensor("shared.router", (1, hidden)),
    )


FAMILY = Family(
    name="qwen_moe",
    architectures=("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    schema=schema,
    spelling={
        **blocks.DECODER_SPELLING,
        **blocks.experts_spelling(),
        **blocks.SHARED_EXPERT_SPELLING,
    },
    variants=({**blocks.DECODER_SPELLING, **blocks.stacked_experts_spelling(), **blocks.SHARED_EXPERT_SPELLING},),
    native=(*blocks.DECODER_NATIVE, *blocks.EXPERTS_NATIVE, *blocks.SHARED_EXPERT_NATIVE),
    waived=(blocks.INV_FREQ,),
    runs=True,
)
