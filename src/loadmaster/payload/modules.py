"""Groups stored tensors by name: the values of a module, their factors (scales), and their index of groups.

Where there is a plan, `loadmaster.payload.roles` uses it instead. Names are used where there is no plan, and to find a
tensor's peers: the same tensor in other layers and experts.
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
"""Components of `loadmaster.formats.NVFP4` that values are divided by, not multiplied."""

_VALUES: Final = ("weight", "weight_packed", "qweight", "_blocks")
_FACTORS: Final = (
    *("weight_scale_inv", "weight_scale", "weight_scale_2", "weight_global_scale", "scales", "_scales"),
    "qscale_weight",
)
_ACTIVATIONS: Final = ("input_scale", "output_scale", "input_global_scale", "activation_scale", "qscale_act")
_INDEX: Final = ("g_idx", "weight_g_idx")
_CACHE: Final = re.compile(r".*\.([qkv]|kv|prob)_scale")
_SCALE: Final = re.compile(r"(.*[._])?scales?(_[^.]*)?")
_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(slots=True)
class Module:
    """The stored tensors of one weight, by id: its values, the factors that scale them, and its index (-1: none)."""

    values: int = -1
    factors: list[int] = field(default_factory=list)
    index: int = -1


def part_of(name: str) -> tuple[str, str]:
    """Return a tensor's module and its part in it; a tensor with any other name is a module by itself.

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
    modules: dict[str, Module] = defaultdict(Module)
    for number, name in enumerate(table.names):
        module, part = part_of(name)
        if part in _FACTORS:
            modules[module].factors.append(number)
        elif part in _INDEX:
            modules[module].index = number
        elif part not in _ACTIVATIONS:
            modules[module].values = number
    return dict(modules)


def named_factor(name: str, signature: Signature) -> bool | None:
    """Return whether a tensor is a factor by its name: True: values are divided by it; False: multiplied; None: not a factor."""
    _, part = part_of(name)
    if part in DIVIDED_BY:
        return True
    number = DTYPES[signature.dtype].kind == "float" or signature.dtype == "U8"
    known = part in _FACTORS or part in _ACTIVATIONS or _CACHE.fullmatch(name) is not None
    return False if signature.dtype == "F8_E8M0" or (known and number) else None


def resembles_factor(name: str, signature: Signature) -> bool:
    """Return whether a tensor has any name of a scale, and a dtype that a scale can have."""
    number = DTYPES[signature.dtype].kind == "float" or signature.dtype == "U8"
    return signature.dtype == "F8_E8M0" or (number and _SCALE.fullmatch(name) is not None)


def is_encoded(name: str, signature: Signature) -> bool:
    """Return whether a tensor's values need factors: FP8 and narrower, and packed codes."""
    dtype = DTYPES[signature.dtype]
    if dtype.kind == "float":
        return dtype.bits <= 8 and signature.dtype != "F8_E8M0"
    return signature.dtype in ("U8", "I8", "I32", "U32") and len(signature.shape) > 1 and part_of(name)[1] in _VALUES


def place_of(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with its numbers replaced by ``*``, and the numbers: tensors with the same first part are peers.

    >>> place_of("model.layers.3.mlp.experts.7.up_proj.weight")
    ('model.layers.*.mlp.experts.*.up_proj.weight', (3, 7))
    """
    return _NUMBER.sub("*", name), tuple(int(n) for n in _NUMBER.findall(name))


def num_groups(table: TensorTable, module: Module) -> Iterator[tuple[int, int]]:
    """Yield, where a module has an index, its number of groups and the inputs of each (0: they differ)."""
    if module.index < 0 or not module.factors:
        return
    factors, index = (table.signatures[int(table.signature[i])].shape for i in (module.factors[0], module.index))
    if len(factors) < 2 or not index or not index[-1]:
        return
    groups = factors[-2] if part_of(table.names[module.factors[0]])[1] == "scales" else factors[-1]
    if groups:
        yield groups, index[-1] // groups if index[-1] % groups == 0 else 0
