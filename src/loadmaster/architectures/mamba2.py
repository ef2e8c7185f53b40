"""Mamba-2, as its three tables: a state-space layer with heads, whose inputs are made by one matrix.

``in_proj`` holds z, x, B, C and dt one after another: z, x and dt are divided by heads, B and C by groups, which are held several
times where there are fewer of them than ranks. x, B and C pass one short convolution.

Sources: ``modeling_mamba2.py`` of transformers; ``mamba_mixer2.py`` in ``vllm/model_executor/layers/mamba``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from loadmaster.architectures.schema import Param, Tensor, by_columns, by_rows, linear
from loadmaster.architectures.spelling import Packed, packed


class Mamba2(NamedTuple):
    """The sizes of a layer: heads and their elements, groups and the state of each, tokens that the convolution covers."""

    heads: int
    head: int
    groups: int
    state: int
    width: int


def tensors(hidden: int, sizes: Mamba2, *, conv_bias: bool, normed: bool = True) -> tuple[Tensor, ...]:
    """Return the tensors of a layer; ``normed``: its output is normed before the last matrix."""
    heads, head, groups, state, width = sizes
    inner, states = heads * head, groups * state
    by_head, by_group = by_rows(head), by_rows(state, repeat=True)
    channels = {"x": (inner, by_head), "b": (states, by_group), "c": (states, by_group)}
    made = [
        linear("mamba.z", inner, hidden, by_head),
        *(linear(f"mamba.{name}", rows, hidden, cut) for name, (rows, cut) in channels.items()),
        linear("mamba.dt", heads, hidden, by_rows()),
        *(Tensor(f"mamba.conv_{name}", (rows, 1, width), cut) for name, (rows, cut) in channels.items()),
        *(Tensor(f"mamba.{name}", (heads,), by_rows(), usual=("F32",)) for name in ("a_log", "d", "dt_bias")),
        linear("mamba.out", hidden, inner, by_columns(head)),
    ]
    if normed:
        made.append(Tensor("mamba.norm", (inner,), by_head))
    if conv_bias:
        made += [Tensor(f"mamba.conv_{name}_bias", (rows,), cut) for name, (rows, cut) in channels.items()]
    return tuple(made)


_PACKED: Final = {
    "in_proj.weight": ("mamba.z", "mamba.x", "mamba.b", "mamba.c", "mamba.dt"),
    "conv1d.weight": ("mamba.conv_x", "mamba.conv_b", "mamba.conv_c"),
    "conv1d.bias": ("mamba.conv_x_bias", "mamba.conv_b_bias", "mamba.conv_c_bias"),
}
_ALONE: Final = {
    **{"mamba.a_log": "A_log", "mamba.d": "D", "mamba.dt_bias": "dt_bias"},
    **{"mamba.norm": "norm.weight", "mamba.out": "out_proj.weight"},
}


def spelling(prefix: str) -> dict[str, str | Packed]:
    """Return the spelling of a layer that is stored under ``prefix``."""
    joined = {
        name: spelled for stored, parts in _PACKED.items() for name, spelled in packed(prefix + stored, *parts).items()
    }
    return {**joined, **{name: prefix + stored for name, stored in _ALONE.items()}}


def native(prefix: str) -> tuple[Param, ...]:
    """Return the parameters of a layer, under ``prefix``."""
    return (
        *(Param(prefix + stored, parts) for stored, parts in _PACKED.items()),
        *(Param(prefix + stored, (name,)) for name, stored in _ALONE.items()),
    )
