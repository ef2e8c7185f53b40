"""Intern-S1-Pro's language model: a Qwen3-MoE whose rotary embedding mixes frequencies by coefficients for each head of keys.

There is one set of coefficients for all layers, so every stage holds it, divided by heads. How many frequencies it has is given
(``num_inv_freq``), or they are those whose wave fits into the positions.

Sources: ``interns1_pro.py`` in ``vllm/model_executor/models``, and ``fope.py`` in its rotary embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from math import pi
from typing import Final

from loadmaster.architectures import blocks, qwen_moe
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_rows

INTERN: Final = "InternS1ProForCausalLM"
COEFFICIENTS: Final = ("sin_coef", "cos_coef")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    made = qwen_moe.schema(c)
    _, _, kv_heads, head = blocks.heads_of(c)
    count = _frequencies(c, head)
    mixed = (
        Tensor(f"rope.{name}", (kv_heads, count, count), by_rows(repeat=True), usual=("F32",)) for name in COEFFICIENTS
    )
    return replace(made, top=(*made.top, *mixed))


def _frequencies(c: Config, head: int) -> int:
    scaling, rope = c.section("rope_scaling"), c.section("rope_parameters")
    given = scaling.optional_size("num_inv_freq") or rope.optional_size("num_inv_freq")
    if given is not None:
        return given
    theta = c.number("rope_theta", rope.number("rope_theta", 1e4, above=0), above=0)
    positions = c.size("max_position_embeddings")
    return sum(theta ** (-number / head) > 2 * pi / positions for number in range(0, head, 2))


FAMILY = Family(
    name="interns1_pro",
    architectures=(INTERN,),
    schema=schema,
    spelling={
        **qwen_moe.FAMILY.spelling,
        **{f"rope.{name}": f"model.rotary_emb.{name}" for name in COEFFICIENTS},
    },
    variants=tuple(
        {**spelling, **{f"rope.{name}": f"model.rotary_emb.{name}" for name in COEFFICIENTS}}
        for spelling in qwen_moe.FAMILY.variants
    ),
    native=(
        *qwen_moe.FAMILY.native,
        *(Param(f"rotary_emb.{name}", (f"rope.{name}",), stage="every") for name in COEFFICIENTS),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={INTERN: OF_VLLM},
)
