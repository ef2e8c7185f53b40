"""Checks that an engine's parameters, for this checkpoint and layout, are as described for that engine.

An engine decides by its config which parameters it has; a plan decides by the headers. Where these may
differ, or where the engine's kernels would read a parameter differently than planned, nothing is planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from loadmaster.architectures.algebra import Cast, Decode, Expression, Reorder
from loadmaster.architectures.target import Target
from loadmaster.errors import UnsupportedError
from loadmaster.plan.composition import PlannedParam


def check_described(target: Target, composed: Iterable[PlannedParam], dtype: str) -> None:
    """Refuse composed parameters that are not described for ``target``; ``dtype`` is the model's.

    Raises:
        UnsupportedError: names the parameter, and what is not described.
    """
    if target.formats is None:
        return
    different = list({id(c): c for c in composed}.values())
    expected = {
        name: held.param[1]
        for c in different
        for name, held in zip(c.spec.components, target.formats.get(c.spec.format or "", ())[1:], strict=False)
    }
    params = {p.name: p for p in target.params}
    for c in different:
        param = params.get(c.spec.name)
        undescribed = next(_of_components(c, target, is_of_model=param is not None and param.stage is not None), None)
        if c.spec.dtype != expected.get(c.spec.name, c.spec.dtype):
            undescribed = f"scales in {c.spec.dtype}"
        undescribed = undescribed or next(
            _of_decoding(c, dtype, expected=param is not None and param.form == "decoded"), None
        )
        if undescribed:
            name = re.sub(r"\{(block|draft)\}", target.layer.format(layer="*"), c.spec.name)
            raise UnsupportedError(f"{name}: {undescribed}, which is not described for {target.name}")


def _of_components(c: PlannedParam, target: Target, *, is_of_model: bool) -> Iterator[str]:
    """Yield what is not described for a weight that stays encoded."""
    assert target.formats is not None
    spec = c.spec
    if spec.format is None:
        return
    suffixes = [held.param[0] for held in target.formats.get(spec.format, ())[1:]]
    if len(spec.components) != len(suffixes) or not all(map(str.endswith, spec.components, suffixes)):
        yield f"{spec.format} with {', '.join(n.rpartition('.')[2] for n in spec.components)}"
    if is_of_model:
        yield f"{spec.format} outside the layers"
    if any(any(grid.phase) for grid in spec.grids):
        yield "a cut over the ranks inside a block of scales"
    if any((grid.rows[1] - grid.rows[0]) % grid.block[0] for grid in spec.grids[:-1]):
        yield "a part that ends inside a block of scales, with another after it"


def _of_decoding(c: PlannedParam, dtype: str, *, expected: bool) -> Iterator[str]:
    """Yield what is not described for a decoded parameter."""
    for d in (decode for piece in c.pieces if (decode := _decode(piece.source))):
        if d.format.transient or d.format.everywhere:
            yield d.format.name
        if not expected:
            yield "parts of which only some are quantised, or not all alike"
        if dtype != "BF16":
            yield f"values decoded into {dtype}"  # an engine decodes through BF16
        if any(n > b and n % b for n, b in zip(d.shape, d.format.block, strict=True)):
            yield f"{list(d.shape)} in blocks of {list(d.format.block)}"


def _decode(e: Expression) -> Decode | None:
    return _decode(e.operand) if isinstance(e, (Cast, Reorder)) else e if isinstance(e, Decode) else None
