"""Towers: what a model stores beside its language model (vision, audio, projectors), held by the first stage where it is wanted.

No table describes them, so their names, shapes and dtypes are those of the headers: each stored tensor is a parameter of the
same name on every rank of the first stage, whole and as it is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from loadmaster.architectures.schema import Family, Param, Schema, Tensor
from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import NATIVE, engine_of
from loadmaster.checkpoint import TensorTable
from loadmaster.errors import LayoutError, UnsupportedError
from loadmaster.findings import Finding

LOGICAL = "tower."
"""How the logical names of towers' tensors begin; the stored name follows."""


@dataclass(frozen=True, slots=True)
class WithTowers:
    """The tables of a model with its towers, and the ``finding`` that says where these come from."""

    family: Family
    schema: Schema
    target: Target
    finding: Finding


def with_towers(family: Family, schema: Schema, target: Target, table: TensorTable) -> WithTowers:
    """Return a model's tables with every tensor that ``family`` knows to be outside its language model.

    Raises:
        LayoutError: the model has nothing outside its language model.
        UnsupportedError: the target's parameters of towers are not described, or a tensor has no dims.
    """
    if engine_of(target.name) != NATIVE:
        raise UnsupportedError(
            f"--multimodal: towers are not described for {target.name}", hint="leave out --multimodal"
        )
    ids = ids_outside(family, table)
    if not ids:
        raise LayoutError(
            "--multimodal asks for vision and audio, and nothing is stored outside the language model",
            hint="leave out --multimodal",
            code="tower-missing",
        )
    tensors = tuple(_tensors(table, ids))
    stored = {t.name: t.name.removeprefix(LOGICAL).replace("{", "{{").replace("}", "}}") for t in tensors}
    params = tuple(Param(t.name.removeprefix(LOGICAL), (t.name,), stage="first") for t in tensors)
    return WithTowers(
        replace(
            family,
            spelling={**family.spelling, **stored},
            variants=tuple({**spelling, **stored} for spelling in family.variants),
        ),
        replace(schema, top=(*schema.top, *tensors)),
        replace(target, params=(*target.params, *params)),
        _finding(table, ids),
    )


def ids_outside(family: Family, table: TensorTable) -> list[int]:
    """Return the ids of the stored tensors that ``family`` knows to be outside its language model, ascending."""
    outside = [re.compile(pattern) for pattern in family.outside]
    return [i for i, name in enumerate(table.names) if any(p.fullmatch(name) for p in outside)] if outside else []


def _tensors(table: TensorTable, ids: Sequence[int]) -> Iterator[Tensor]:
    for i in ids:
        signature = table.signatures[table.signature[i]]
        if not signature.shape:
            raise UnsupportedError(f"--multimodal: {table.names[i]} is a number without dims, which is not supported")
        dtype = signature.dtype
        yield Tensor(f"{LOGICAL}{table.names[i]}", signature.shape, dtypes=(dtype,), keep=dtype, usual=(dtype,))


def _finding(table: TensorTable, ids: Sequence[int]) -> Finding:
    roots = dict.fromkeys(_root(table.names[i]) for i in ids)
    size = sum(int(table.nbytes[i]) for i in ids)
    shown = ", ".join([*roots][:4]) + (", …" if len(roots) > 4 else "")
    return Finding(
        "tower-unchecked",
        "warning",
        f"what is stored outside the language model ({shown}: {len(ids):,} tensors, {size:,} bytes) is held as the headers have "
        "it: no table says what its names and shapes should be",
        hint="a tensor that is missing from all headers is not noticed; compare with the published index",
    )


def _root(name: str) -> str:
    """Return the module that a tensor of a tower is in.

    >>> [_root(n) for n in ("model.visual.blocks.0.attn.qkv.weight", "vision_tower.x.weight", "image_newline")]
    ['model.visual', 'vision_tower', 'image_newline']
    """
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("model", "thinker") and len(parts) > 2 else 1])
