"""Which stored tensors belong together, by their names: the values of a module, their factors, and their index of groups.

A plan knows better, and `loadmaster.payload.roles` follows it. Names serve where there is no plan, and to find the peers of
a tensor: those of the same place in other layers and experts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from loadmaster.checkpoint import Signature, TensorTable
from loadmaster.dtypes import DTYPES

DIVIDED_BY: Final = ("weight_global_scale", "input_global_scale")
"""Components of `loadmaster.formats.NVFP4`, whose values are divided by them."""

_VALUES: Final = ("weight", "weight_packed", "qweight", "_blocks")
_FACTORS: Final = ("weight_scale_inv", "weight_scale", "weight_scale_2", "weight_global_scale", "scales", "_scales")
_ACTIVATIONS: Final = ("input_scale", "output_scale", "input_global_scale")
_INDEX: Final = ("g_idx", "weight_g_idx")
_CACHE: Final = re.compile(r".*\.([qkv]|kv|prob)_scale")
_SCALE: Final = re.compile(r"(.*[._])?scales?(_[^.]*)?")
_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(slots=True)
class Module:
    """The stored tensors of one weight, by id: its values (-1: none), the factors they are scaled by, and its index."""

    values: int = -1
    factors: list[int] = field(default_factory=list)
    index: int = -1


def part_of(name: str) -> tuple[str, str]:
    """Return the module that a tensor belongs to, and what it is of it; what has no such name is a module of its own.

    >>> part_of("layers.3.mlp.up_proj.weight_scale_inv"), part_of("layers.3.mlp.experts.down_proj_blocks")
    (('layers.3.mlp.up_proj', 'weight_scale_inv'), ('layers.3.mlp.experts.down_proj', '_blocks'))
    """
    module, _, last = name.rpartition(".")
    if last in _VALUES or last in _FACTORS or last in _ACTIVATIONS or last in _INDEX:
        return module, last
    for ending in ("_blocks", "_scales"):
        if last.endswith(ending):
            return name.removesuffix(ending), ending
    return name, ""


def modules_of(table: TensorTable) -> dict[str, Module]:
    """Return the modules of a checkpoint by name."""
    made: dict[str, Module] = defaultdict(Module)
    for number, name in enumerate(table.names):
        module, part = part_of(name)
        if part in _FACTORS:
            made[module].factors.append(number)
        elif part in _INDEX:
            made[module].index = number
        elif part not in _ACTIVATIONS:
            made[module].values = number
    return dict(made)


def named_factor(name: str, signature: Signature) -> bool | None:
    """Return whether a tensor is a factor by its name: True for one that is divided by, None for what is none."""
    _, part = part_of(name)
    if part in DIVIDED_BY:
        return True
    number = DTYPES[signature.dtype].kind == "float" or signature.dtype == "U8"
    known = part in _FACTORS or part in _ACTIVATIONS or _CACHE.fullmatch(name) is not None
    return False if signature.dtype == "F8_E8M0" or (known and number) else None


def resembles_factor(name: str, signature: Signature) -> bool:
    """Return whether a tensor is called a scale, in whatever way, and may be one."""
    number = DTYPES[signature.dtype].kind == "float" or signature.dtype == "U8"
    return signature.dtype == "F8_E8M0" or (number and _SCALE.fullmatch(name) is not None)


def is_encoded(name: str, signature: Signature) -> bool:
    """Return whether a tensor's values mean nothing without factors: FP8 and narrower, and packed codes."""
    dtype = DTYPES[signature.dtype]
    if dtype.kind == "float":
        return dtype.bits <= 8 and signature.dtype != "F8_E8M0"
    return signature.dtype in ("U8", "I8", "I32", "U32") and len(signature.shape) > 1 and part_of(name)[1] in _VALUES


def place_of(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name without its numbers, and the numbers: tensors of the same name without numbers are peers.

    >>> place_of("model.layers.3.mlp.experts.7.up_proj.weight")
    ('model.layers.*.mlp.experts.*.up_proj.weight', (3, 7))
    """
    return _NUMBER.sub("*", name), tuple(int(n) for n in _NUMBER.findall(name))


def num_groups(table: TensorTable, module: Module) -> Iterator[tuple[int, int]]:
    """Yield, where a module has an index, how many groups of inputs it has and how many inputs are in one (0: not even)."""
    if module.index < 0 or not module.factors:
        return
    factors, index = (table.signatures[int(table.signature[i])].shape for i in (module.factors[0], module.index))
    if len(factors) < 2 or not index or not index[-1]:
        return
    groups = factors[-2] if part_of(table.names[module.factors[0]])[1] == "scales" else factors[-1]
    if groups:
        yield groups, index[-1] // groups if index[-1] % groups == 0 else 0
