"""A weight as it was loaded: plain, or quantised with its scales. Dequantised exactly, at each use.

This is the plain path for every device: a weight takes the memory that the checkpoint takes, and a product in float32 has
no rounding except its own. Kernels that multiply quantised weights directly are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from loadmaster.distributed.tensor import TensorGroup
from loadmaster.errors import UnsupportedError
from loadmaster.kernels.block_product import BlockFactors, row_map
from loadmaster.kernels.choice import uses_kernels
from loadmaster.kernels.dequantise import dequantise_blocks
from loadmaster.kernels.fp8_dequantise import dequantise_blocks_into
from loadmaster.layers.formats import RUNNABLE_FORMATS
from loadmaster.layers.linear_forms import Tuner
from loadmaster.plan import Division, Grid, ParamSpec


@dataclass(frozen=True)
class Weight:
    """``values`` ``[…, out, in]`` with, where quantised, ``scale`` ``[…, blocks out, blocks in]`` and its ``grids``.

    The grids come from the plan: shapes alone are ambiguous where the last quantisation block is not whole.
    """

    values: Tensor
    scale: Tensor | None = None
    grids: tuple[Grid, ...] = ()

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the values in ``dtype``: the product value × scale in float32, rounded once."""
        if self.scale is None:
            return self.values.to(dtype)
        if self.values.dim() == 2 and uses_kernels(self.values.device, dtype):
            out = self.values.new_empty(self.values.shape, dtype=dtype)
            for g in self.grids:
                rows, scale_rows = slice(*g.rows), slice(*g.scale_rows)
                dequantise_blocks_into(out[rows], self.values[rows], self.scale[scale_rows], g.block, g.phase)
            return out
        parts = [
            dequantise_blocks(
                self.values[..., g.rows[0] : g.rows[1], :],
                self.scale[..., g.scale_rows[0] : g.scale_rows[1], :],
                g.block,
                g.phase,
            ).to(dtype)
            for g in self.grids
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    @cached_property
    def factors(self) -> BlockFactors | None:
        """The scales, as `kernels.block_product` takes them; None if there are none, or if a block is cut in its columns."""
        blocks = {(g.block[1], g.phase[1]) for g in self.grids}
        if self.scale is None or len(blocks) != 1 or (columns := min(blocks)[0]) % 16 or min(blocks)[1]:
            return None
        rows = row_map([(g.rows, g.scale_rows, g.block[0], g.phase[0]) for g in self.grids], self.values.device)
        return BlockFactors(self.scale.to(torch.float32), rows, columns)

    @property
    def has_product(self) -> bool:
        """Whether `kernels.block_product` can multiply with the weight as it is stored."""
        return self.scale is None or self.factors is not None

    def expert(self, index: int) -> Weight:
        """Return one expert of a stack ``[E, out, in]``."""
        return Weight(self.values[index], None if self.scale is None else self.scale[index], self.grids)


class Params:
    """A rank's parameters by name.

    ``tuner``: linear layers may make faster copies of their weights. ``group``: the ranks among which parameters are divided.
    """

    def __init__(
        self,
        specs: Sequence[ParamSpec],
        tensors: Mapping[str, Tensor],
        tuner: Tuner | None = None,
        group: TensorGroup | None = None,
    ) -> None:
        self.tuner = tuner
        self._specs = {s.name: s for s in specs}
        self._tensors = tensors
        self.group = group

    @property
    def device(self) -> torch.device:
        """The device of all parameters."""
        return next(iter(self._tensors.values())).device

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def block(self, name: str, shown_as: str) -> Params:
        """Return the parameters of block ``name`` under the name ``shown_as``, and no others.

        An MTP layer's block is named ``mtp.0``; a family's layer looks for ``layers.61``.
        """

        def shown(stored: str) -> str:
            return f"{shown_as}.{stored.removeprefix(f'{name}.')}"

        specs = {s.name: s for s in self._specs.values() if s.name.startswith(f"{name}.")}
        block = copy(self)
        block._specs = {
            shown(s.name): replace(s, name=shown(s.name), scale=None if s.scale is None else shown(s.scale))
            for s in specs.values()
        }
        block._tensors = {shown(stored): self._tensors[stored] for stored in specs}
        return block

    def tensor(self, name: str) -> Tensor:
        """Return a parameter that is never quantised."""
        return self._tensors[name]

    def optional(self, name: str) -> Tensor | None:
        """Return a parameter that not every model of a family has."""
        return self._tensors[name] if name in self._specs else None

    def division(self, name: str) -> Division:
        """Return how a parameter is divided: the rows of its parts, and the experts of its slots."""
        return self._specs[name].division

    def heads(self, name: str, head_dim: int) -> tuple[int, ...]:
        """Return how many heads of ``head_dim`` rows each fused part of a weight has on this rank."""
        return tuple(part.count // head_dim for part in self.division(name).parts)

    def adding(self, name: str) -> TensorGroup | None:
        """Return the group that must add up what is computed with a weight; None where it is complete."""
        return self.group if self.division(name).is_partial else None

    def may_tune(self, name: str) -> bool:
        """Return whether a linear layer may multiply with a faster copy of a weight, whose products have other last bits.

        Ranks may choose different copies. A product that all of them compute must be the same on all.
        """
        spec = self._specs[name]
        return spec.scale is None and (self.group is None or spec.division.is_divided)

    def weight(self, name: str) -> Weight:
        """Return a weight, with its scales where it has some."""
        spec = self._specs.get(name)
        if spec is None or spec.format not in RUNNABLE_FORMATS:
            stem = name.removesuffix("weight")
            format_ = spec.format if spec else next(s.format for n, s in self._specs.items() if n.startswith(stem))
            raise UnsupportedError(
                f"{name} is stored in the format {format_}, which can be planned and loaded, not run yet"
            )
        scale = self._tensors[spec.scale] if spec.scale is not None else None
        return Weight(self._tensors[name], scale, spec.grids)
