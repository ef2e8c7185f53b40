"""Attention over residuals: each attention and each MLP reads a mix of snapshots of the residual.

A snapshot is taken every ``attn_res_block_size`` layers. A stage passes on the running sum (``hidden_states``) and all
snapshots so far (``residual``), which grow with the cut.

Sources: ``vllm/models/kimi_k3/nvidia``, and the headers of Kimi-K3.
"""

from __future__ import annotations

from loadmaster.architectures.blocks import LAYER
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Carried, Param, Tensor
from loadmaster.architectures.spelling import Spelling

_READERS, _LAST = ("self_attention_res", "mlp_res"), "output_attn_res"
"""What reads a mix in each layer, and after the last one."""


def every(c: Config) -> int | None:
    """Return after how many layers a snapshot is taken; None where there are none."""
    return c.optional_size("attn_res_block_size")


def _mix(name: str, hidden: int) -> tuple[Tensor, ...]:
    """Return what weighs the snapshots before an attention, an MLP or the head."""
    return (Tensor(f"{name}_norm", (hidden,)), Tensor(f"{name}_proj", (1, hidden)))


def of_layer(hidden: int) -> tuple[Tensor, ...]:
    """Return what a layer has for it."""
    return tuple(tensor for name in _READERS for tensor in _mix(name, hidden))


def of_model(hidden: int) -> tuple[Tensor, ...]:
    """Return what the model itself has for it."""
    return _mix(_LAST, hidden)


def carried(c: Config, num_layers: int) -> tuple[tuple[Carried, ...], ...]:
    """Return the snapshots that a stage needs which begins at each layer; nothing where there are none."""
    if (size := every(c)) is None:
        return ()
    hidden = c.size("hidden_size")
    return tuple((Carried("residual", (-(-layer // size), hidden)),) if layer else () for layer in range(num_layers))


_PARTS = ("norm", "proj")
SPELLING: Spelling = {
    **{f"{_LAST}_{part}": f"model.{_LAST}_{part}.weight" for part in _PARTS},
    **{f"{name}_{part}": f"{LAYER}{name}_{part}.weight" for name in _READERS for part in _PARTS},
}
NATIVE = (
    *(Param(f"{_LAST}_{part}.weight", (f"{_LAST}_{part}",), stage="last") for part in _PARTS),
    *(Param(f"{{block}}.{name}_{part}.weight", (f"{name}_{part}",)) for name in _READERS for part in _PARTS),
)
