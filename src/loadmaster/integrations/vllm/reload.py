"""Reloading weights in place, from a checkpoint or pushed by a trainer: it must bring every tensor of the original load.

When vLLM reloads weights, the memory has no pattern, and old weights stay where no new ones arrive. So the tensors are
compared with those of the original load, which was proven: the same names, shapes and formats. This module reads attributes
of vLLM's models, and does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import torch

from loadmaster.checkpoint import Signature
from loadmaster.errors import LoadError, UsageError
from loadmaster.torch_dtypes import TORCH

SHOWN: Final = 12
"""How many tensors or parameters one error lists; one missing shard can affect hundreds."""

Signatures: TypeAlias = Mapping[str, Signature]

_PROVEN: Final = "loadmaster_proven"


def remember(model: torch.nn.Module, read: Signatures) -> None:
    """Record the tensors that a model was loaded from, after every parameter was found written."""
    setattr(model, _PROVEN, dict(read))


def remembered(model: torch.nn.Module) -> Signatures | None:
    """Return the tensors that a model was loaded from; None if nothing was proven."""
    signatures: Signatures | None = getattr(model, _PROVEN, None)
    return signatures


def check_found(proven: Signatures, stored: Signatures, rank: str) -> None:
    """Refuse a checkpoint that lacks tensors of the original load.

    Raises:
        LoadError: names the rank and the tensors.
    """
    wrong = [
        f"  {name}  {_shape(signature)}: {_shape(stored[name]) if name in stored else 'not in the checkpoint'}"
        for name, signature in proven.items()
        if stored.get(name) != signature
    ]
    if wrong:
        raise LoadError(
            f"{rank}: cannot reload: {len(wrong):,} tensors of the original load are missing or have changed\n\n"
            + _listed(wrong),
            hint="this rank is unchanged; if other ranks reloaded theirs, reload a sound checkpoint",
        )


def received(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield those of the pushed tensors that a rank's model needs; they are whole and have their checkpoint names.

    For vLLM's ``reload_weights(weights_iterator=received(model, weights))``. The order does not matter; tensors that this
    rank does not need are skipped. Tensors are not copied: they must not change until vLLM has written them.

    Raises:
        UsageError: the model was not loaded and proven by this load format.
        LoadError: a tensor has another shape or format than in the original load, or arrives twice; or, after the last one,
            some are missing. The model's weights are then partly old and partly new.
    """
    proven = remembered(model)
    if proven is None:
        raise UsageError(
            f"{type(model).__name__} was not proven when it was loaded, so the tensors that it needs are not known",
            hint="load it with --load-format loadmaster and verify on",
        )
    return _needed(proven, weights)


def _needed(proven: Signatures, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    arrived = set[str]()
    for name, tensor in weights:
        signature = proven.get(name)
        if signature is None:
            continue
        if tuple(tensor.shape) != signature.shape or tensor.dtype != TORCH[signature.dtype]:
            has = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise LoadError(f"{name} arrived as {has}, expected {_shape(signature)}", hint=_HALF)
        if name in arrived:
            raise LoadError(f"{name} arrived twice", hint=_HALF)
        arrived.add(name)
        yield name, tensor
    if missing := [f"  {name}  {_shape(signature)}" for name, signature in proven.items() if name not in arrived]:
        raise LoadError(
            f"{len(missing):,} of {len(proven):,} tensors did not arrive:\n\n{_listed(missing)}", hint=_HALF
        )


_HALF: Final = "earlier tensors may be written already; push all tensors again"


def _shape(signature: Signature) -> str:
    return f"{signature.dtype} {list(signature.shape)}"


def _listed(lines: list[str]) -> str:
    more = [f"\n and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])
