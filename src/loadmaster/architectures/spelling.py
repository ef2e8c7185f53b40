"""What the logical tensors of a family are called in a checkpoint, and which share a stored tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Packed:
    """One stored tensor that holds several logical ones, one after another along their out dim; or a stack of experts.

    ``name`` is its stored name, ``parts`` the logical tensors in order (one, where only the storage differs).
    ``stacked``: all experts in one tensor, along its first dim. ``transposed``: plain weights are stored (in, out);
    encoded ones as their format defines. Every part is spelled with an equal `Packed`.

    ``by_group``: the first group of rows of every part, then the second of every part, and so on (`Tensor.groups` has their
    number). ``apart``: each group is encoded as a tensor by itself, so quantisation blocks begin anew in each. ``first`` is the
    layer that the name calls 0. ``flat``: the stack has no dim for the experts, so the rows of one follow those of another.
    ``pairs``: the rows of each head (`Tensor.head`) are stored pair by pair, where the model has the first rows of all pairs
    before the second ones. ``numbers_each``: what a format has once for a whole weight (NVFP4's second factor), a stack has for
    each part of each expert, ``[experts, parts]``.
    """

    name: str
    parts: tuple[str, ...]
    stacked: bool = False
    transposed: bool = False
    by_group: bool = False
    apart: bool = False
    first: int = 0
    flat: bool = False
    pairs: bool = False
    numbers_each: bool = False


Spelling = Mapping[str, "str | Packed"]
"""Logical name -> stored name, with ``{layer}``, ``{expert}`` and ``{slice}``."""


def packed(
    name: str,
    *parts: str,
    stacked: bool = False,
    transposed: bool = False,
    by_group: bool = False,
    apart: bool = False,
    first: int = 0,
    flat: bool = False,
    pairs: bool = False,
    numbers_each: bool = False,
) -> dict[str, Packed]:
    """Return the spelling of all ``parts`` of one stored tensor, to be merged into a `Spelling`.

    >>> sorted(packed("model.layers.{layer}.self_attn.qkv_proj.weight", "attn.q", "attn.k", "attn.v"))
    ['attn.k', 'attn.q', 'attn.v']
    """
    return dict.fromkeys(
        parts, Packed(name, parts, stacked, transposed, by_group, apart, first, flat, pairs, numbers_each)
    )


def respelled(spelling: Spelling, *changes: tuple[str, str]) -> dict[str, str | Packed]:
    """Return a spelling whose stored names begin with another prefix; the first change that matches is applied.

    >>> respelled({"norm": "model.norm.weight"}, ("model.", "language_model.model."))
    {'norm': 'language_model.model.norm.weight'}
    """

    def change(name: str) -> str:
        for old, new in changes:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {
        logical: change(s) if isinstance(s, str) else replace(s, name=change(s.name)) for logical, s in spelling.items()
    }
