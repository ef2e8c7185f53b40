"""Kimi Delta Attention (KDA), as its three tables: linear attention with a decay for each channel of each head.

Queries, keys and values have one head count, and each passes a separate short convolution. Two more projections make the
decay (``f``, with ``A_log`` for each head and ``dt_bias`` for each channel) and the gate of the output (``g``); each is one
matrix, or two with a bottleneck that every rank holds. ``b`` is one number for each head. All is divided by heads.

Sources: ``modeling_kimi_linear.py``, ``modeling_glm5_next.py`` and ``modeling_bailing_hybrid.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Collection

from loadmaster.architectures.blocks import LAYER
from loadmaster.architectures.schema import Param, Tensor, by_columns, by_rows, linear


def kda(hidden: int, heads: int, head: int, width: int = 4, *, whole: Collection[str] = ()) -> tuple[Tensor, ...]:
    """Return the tensors of KDA: ``heads`` of ``head`` elements, with convolutions over ``width`` tokens.

    ``whole`` are those of ``f`` and ``g`` that are one matrix; the others are two, with ``head`` elements between them.
    """
    size, by_head = heads * head, by_rows(head)
    tensors = [linear(f"linear.{part}", size, hidden, by_head) for part in ("q", "k", "v")]
    for part in ("f", "g"):
        if part in whole:
            tensors.append(linear(f"linear.{part}", size, hidden, by_head))
        else:
            tensors += [linear(f"linear.{part}_a", head, hidden), linear(f"linear.{part}_b", size, head, by_head)]
    return (
        *tensors,
        linear("linear.b", heads, hidden, by_rows()),
        *(Tensor(f"linear.conv_{part}", (size, 1, width), by_head, usual=("F32",)) for part in ("q", "k", "v")),
        # exponents of the decay keep their precision
        Tensor("linear.dt_bias", (size,), by_head, keep="F32"),
        Tensor("linear.a_log", (heads,), by_rows(), keep="F32"),
        Tensor("linear.norm", (head,), usual=("F32",)),
        linear("linear.out", hidden, size, by_columns(head)),
    )


_PROJECTIONS = ("q", "k", "v", "f", "f_a", "f_b", "g", "g_a", "g_b", "b")


def kda_spelling(stored: str = "self_attn", out: str = "o_proj") -> dict[str, str]:
    """Return the spelling of KDA that is stored under ``model.layers.{layer}.`` + ``stored``; ``out`` is its last matrix."""
    prefix = f"{LAYER}{stored}."
    return {
        **{f"linear.{part}": f"{prefix}{part}_proj.weight" for part in _PROJECTIONS},
        **{f"linear.conv_{part}": f"{prefix}{part}_conv1d.weight" for part in ("q", "k", "v")},
        "linear.dt_bias": prefix + "dt_bias",
        "linear.a_log": prefix + "A_log",
        "linear.norm": prefix + "o_norm.weight",
        "linear.out": f"{prefix}{out}.weight",
    }


KDA_NATIVE = (
    Param("{block}.self_attn.qkv_proj.weight", ("linear.q", "linear.k", "linear.v")),
    *(Param(f"{{block}}.self_attn.{part}_proj.weight", (f"linear.{part}",)) for part in _PROJECTIONS[3:]),
    Param("{block}.self_attn.conv1d.weight", ("linear.conv_q", "linear.conv_k", "linear.conv_v")),
    Param("{block}.self_attn.dt_bias", ("linear.dt_bias",)),
    Param("{block}.self_attn.A_log", ("linear.a_log",)),
    Param("{block}.self_attn.o_norm.weight", ("linear.norm",)),
    Param("{block}.self_attn.o_proj.weight", ("linear.out",)),
)
