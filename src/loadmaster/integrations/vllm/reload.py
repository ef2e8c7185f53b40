"""Loading again: what a model was loaded from, and that all of it comes again, from a checkpoint or pushed by a trainer.

When weights are loaded again in place, vLLM writes them into memory that no pattern was in, and keeps what is old where
nothing comes. So the tensors are held against those that the model was loaded from when it was proven: the same names, shapes
and formats. This module reads attributes of vLLM's models, and imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import torch

from loadmaster.checkpoint import Signature
from loadmaster.errors import LoadError, UsageError
from loadmaster.loader.memory import TORCH

SHOWN: Final = 12
"""Tensors or parameters of one refusal that are named; one missing shard can take hundreds."""

Signatures: TypeAlias = Mapping[str, Signature]

_PROVEN: Final = "loadmaster_proven"


def remember(model: torch.nn.Module, read: Signatures) -> None:
    """Remember what a model was loaded from, once every parameter was found written."""
    setattr(model, _PROVEN, dict(read))


def remembered(model: torch.nn.Module) -> Signatures | None:
    """Return what a model was loaded from; None where nothing was proven."""
    found: Signatures | None = getattr(model, _PROVEN, None)
    return found


def check_found(proven: Signatures, found: Signatures, rank: str) -> None:
    """Refuse a checkpoint that lacks what a model was proven with.

    Raises:
        LoadError: names the rank and the tensors.
    """
    wrong = [
        f"  {name}  {_told(signature)}: {_told(found[name]) if name in found else 'not in the checkpoint'}"
        for name, signature in proven.items()
        if found.get(name) != signature
    ]
    if wrong:
        raise LoadError(
            f"{rank}: {len(wrong):,} of the tensors that the model was loaded from cannot be had for loading it again\n\n"
            + _listed(wrong),
            hint="this rank wrote nothing and is as it was; where others went on, load a sound checkpoint again",
        )


def received(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on what a rank's model needs of tensors that are pushed, whole and under their names in the checkpoint.

    For vLLM's ``reload_weights(weights_iterator=received(model, weights))``. Any order will do; what is another rank's, or
    needed by none, is left out. A tensor is handed on as it is: it must stay as it is until vLLM has written it.

    Raises:
        UsageError: the model was not loaded and proven by this load format.
        LoadError: a tensor has another shape or format than the model was loaded from, or comes twice; or, after the last,
            some never came. The model's weights are then old in some parts and new in others.
    """
    proven = remembered(model)
    if proven is None:
        raise UsageError(
            f"{type(model).__name__} was not proven when it was loaded, so nobody knows what it needs",
            hint="load it with --load-format loadmaster, and verify",
        )
    return _passed_on(proven, weights)


def _passed_on(proven: Signatures, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    came = set[str]()
    for name, tensor in weights:
        signature = proven.get(name)
        if signature is None:
            continue
        if tuple(tensor.shape) != signature.shape or tensor.dtype != TORCH[signature.dtype]:
            has = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise LoadError(f"{name} came as {has}, expected {_told(signature)}", hint=_HALF)
        if name in came:
            raise LoadError(f"{name} came twice", hint=_HALF)
        came.add(name)
        yield name, tensor
    if missing := [f"  {name}  {_told(signature)}" for name, signature in proven.items() if name not in came]:
        raise LoadError(f"{len(missing):,} of {len(proven):,} tensors never came:\n\n{_listed(missing)}", hint=_HALF)


_HALF: Final = "what came before may be written already; push all of it again"


def _told(signature: Signature) -> str:
    return f"{signature.dtype} {list(signature.shape)}"


def _listed(lines: list[str]) -> str:
    more = [f"\n and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])
