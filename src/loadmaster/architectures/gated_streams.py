"""Gated residual streams (Qwen4Exp's hyper-connections), as their three tables.

``hc_count`` streams are the hidden states of a token. Before a part of a layer, a mixer makes one hidden state of them: it has a
norm over all streams, and a matrix in two factors with ``hc_lowrank`` elements between them. A third matrix says how much of the
part's output each stream gets; the mixer before the head has none. All of it is held by every rank, and never quantised. The
streams of other families are in `residual_streams`.

Sources: ``modeling_qwen4_exp.py`` of transformers; ``qwen4_exp/nvidia/hyperconnection.py`` in ``vllm/models``.
"""

from __future__ import annotations

from typing import Final, Literal

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Carried, Param, Tensor

_NORM, _DOWN, _UP, _INJECT = "hc_norm", "input_mix_weight_down", "input_mix_weight_up", "block_inject_weight"
_LAST: Final = (_NORM, _DOWN, _UP)
_ALL: Final = (*_LAST, _INJECT)


def num_streams(c: Config) -> int:
    """Return how many streams there are."""
    return c.size("hc_count", 4)


def carried(c: Config) -> Carried:
    """Return the hidden states that cross a cut: all streams."""
    return Carried("hidden_states", (num_streams(c), c.size("hidden_size")))


def mixer(c: Config, name: str) -> tuple[Tensor, ...]:
    """Return the tensors of a mixer before a part of a layer."""
    streams, rank = num_streams(c), c.size("hc_lowrank", 320)
    wide = streams * c.size("hidden_size")
    shapes = {_NORM: (wide,), _DOWN: (rank, wide), _UP: (wide, rank), _INJECT: (streams, wide)}
    return tuple(Tensor(f"{name}.{part}", shapes[part]) for part in _ALL)


def last_mixer(c: Config, name: str) -> tuple[Tensor, ...]:
    """Return the tensors of the mixer before the head."""
    return mixer(c, name)[: len(_LAST)]


def spelling(name: str, stored: str, *, last: bool = False) -> dict[str, str]:
    """Return the spelling of a mixer that is stored under ``stored``."""
    return {f"{name}.{part}": f"{stored}.{part}.weight" for part in (_LAST if last else _ALL)}


def native(param: str, name: str, *, last: bool = False) -> tuple[Param, ...]:
    """Return the parameters of a mixer under ``param``; the two matrices that read all streams are one."""
    parts = {
        _NORM: (_NORM,),
        _UP: (_UP,),
        **({_DOWN: (_DOWN,)} if last else {f"{_DOWN}_block_inject": (_DOWN, _INJECT)}),
    }
    stage: Literal["last"] | None = "last" if last and not param.startswith("{block}") else None
    return tuple(
        Param(f"{param}.{made}.weight", tuple(f"{name}.{part}" for part in of), stage=stage)
        for made, of in parts.items()
    )
