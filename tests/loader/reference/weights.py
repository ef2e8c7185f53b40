"""Stored weights by format: how their components are cut and fused, and what their values are. Whole tensors, by hand.

Dims are counted from the end, so a stack of experts is cut like one of them. Codes are unpacked with numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from tests.loader.reference.stored import Arrays

Along = Mapping[str, tuple[int, int]]
"""Component -> its dim that runs along the rows (or columns) of the weight, and how many of those an element holds."""


def dequantise(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Dequantise a whole weight in blocks, the last ones ragged."""
    rows, columns = weight.shape[-2:]
    spread = scale.float().repeat_interleave(block[0], -2)[..., :rows, :]
    return weight.float() * spread.repeat_interleave(block[1], -1)[..., :columns]


class Weight:
    """One stored weight (out × in), whole: its components by suffix, the values first.

    What is not in ``rows`` is one for the tensor, or runs along the columns alone.
    """

    rows: ClassVar[Along] = {"weight": (-2, 1)}
    columns: ClassVar[Along] = {"weight": (-1, 1)}

    def __init__(self, stored: Arrays) -> None:
        self.stored = stored

    @property
    def shape(self) -> tuple[int, int]:
        """Out and in, in elements."""
        values = next(iter(self.stored))
        (row, per_row), (column, per_column) = self.rows[values], self.columns[values]
        return self.stored[values].shape[row] * per_row, self.stored[values].shape[column] * per_column

    @property
    def form(self) -> tuple[Any, ...]:
        """What fused parts must have in common to stay as they are stored."""
        return type(self), *((name, t.dtype) for name, t in self.stored.items())

    def expert(self, number: int) -> Weight:
        """One of a stack."""
        made = object.__new__(type(self))
        made.__dict__ = {**self.__dict__, "stored": {name: t[number] for name, t in self.stored.items()}}
        return made

    def cut(self, along: Along, start: int, stop: int) -> Arrays:
        """The components of some rows or columns, each rounded outward to what covers them."""
        part = dict(self.stored)
        for name, (dim, span) in along.items():
            if name in part:
                first = start // span
                part[name] = part[name].narrow(dim, first, -(-stop // span) - first)
        return part

    def fuse(self, parts: list[Arrays]) -> Arrays:
        """Parts one after another along their rows; what has no rows is put side by side."""
        return {
            n: torch.cat([torch.atleast_1d(p[n]) for p in parts], self.rows.get(n, (-1, 0))[0]) for n in self.stored
        }

    def values(self) -> torch.Tensor:
        """The weight itself; of encoded ones in float32."""
        return self.stored["weight"]


class Fp8Block(Weight):
    def __init__(self, stored: Arrays, block: tuple[int, int] = (128, 128)) -> None:
        super().__init__(stored)
        self.scale, self.block = list(stored)[1], block
        self.rows = {"weight": (-2, 1), self.scale: (-2, block[0])}
        self.columns = {"weight": (-1, 1), self.scale: (-1, block[1])}

    def values(self) -> torch.Tensor:
        return dequantise(self.stored["weight"], self.stored[self.scale], self.block)


class Mxfp8(Fp8Block):
    """A power of two for 32 inputs, stored as its biased exponent."""

    def values(self) -> torch.Tensor:
        return dequantise(self.stored["weight"], 2.0 ** (self.stored[self.scale].double() - 127), self.block)


class PerTensor(Weight):
    def values(self) -> torch.Tensor:
        return self.stored["weight"].float() * self.stored["weight_scale"].float()


class PerChannel(PerTensor):
    rows: ClassVar[Along] = {"weight": (-2, 1), "weight_scale": (-2, 1)}


class Nvfp4(Weight):
    def __init__(self, stored: Arrays) -> None:
        super().__init__(stored)
        self.packed = next(iter(stored))
        self.rows = {self.packed: (-2, 1), "weight_scale": (-2, 1)}
        self.columns = {self.packed: (-1, 2), "weight_scale": (-1, 16)}
        of_parts = {n: t for n, t in stored.items() if n in ("weight_scale_2", "input_scale") and t.dim() == 2}
        rows = stored[self.packed].shape[-2]  # a number for each part of each expert: all rows of the part
        self.rows |= {n: (-1, rows // t.shape[-1]) for n, t in of_parts.items() if t.shape[-1] > 1}

    def values(self) -> torch.Tensor:
        factor = self.stored["weight_scale"].float()
        if "weight_scale_2" in self.stored:
            factor = factor * self.stored["weight_scale_2"]  # ModelOpt multiplies
        else:
            factor = factor / self.stored["weight_global_scale"]  # compressed-tensors divides
        return fp4(self.stored[self.packed]) * factor.repeat_interleave(16, -1)


class Mxfp4(Weight):
    rows: ClassVar[Along] = {"_blocks": (-3, 1), "_scales": (-2, 1)}
    columns: ClassVar[Along] = {"_blocks": (-2, 32), "_scales": (-1, 32)}

    def values(self) -> torch.Tensor:
        powers = 2.0 ** (self.stored["_scales"].double() - 127)
        return (fp4(self.stored["_blocks"]).double() * powers[..., None]).float().flatten(-2)


class Mxfp4Linear(Weight):
    """MXFP4 of single weights: pairs in bytes, and a power of two for 32 of them; both have several names."""

    def __init__(self, stored: Arrays) -> None:
        super().__init__(stored)
        self.pairs, self.scale = stored
        self.rows = {self.pairs: (-2, 1), self.scale: (-2, 1)}
        self.columns = {self.pairs: (-1, 2), self.scale: (-1, 32)}

    def values(self) -> torch.Tensor:
        pairs, exponents = (self.stored[name].view(torch.uint8) for name in (self.pairs, self.scale))
        powers = 2.0 ** (exponents.double() - 127)
        return (fp4(pairs).double() * powers.repeat_interleave(32, -1)).float()


class PackedInt(Weight):
    def __init__(self, stored: Arrays, bits: int, group: int | None, act_order: bool) -> None:
        super().__init__(stored)
        self.bits, self.group = bits, group
        per_word = 32 // bits
        self.rows = {"weight_packed": (-2, 1), "weight_scale": (-2, 1), "weight_zero_point": (-2, per_word)}
        self.columns = {"weight_packed": (-1, per_word), "weight_g_idx": (-1, 1)}
        if group and not act_order:
            self.columns = {**self.columns, "weight_scale": (-1, group), "weight_zero_point": (-1, group)}

    def values(self) -> torch.Tensor:
        codes = unpack(self.stored["weight_packed"], self.bits) - 2 ** (self.bits - 1)
        group = np.arange(codes.shape[-1]) // (self.group or codes.shape[-1])
        if "weight_g_idx" in self.stored:
            group = self.stored["weight_g_idx"].numpy()
        if "weight_zero_point" in self.stored:
            zeros = unpack(self.stored["weight_zero_point"].T, self.bits).T - 2 ** (self.bits - 1)
            codes = codes - zeros[: codes.shape[0], group]
        scale = self.stored["weight_scale"].float().numpy()
        return torch.from_numpy(codes.astype(np.float32) * scale[:, group])


class Awq(Weight):
    rows: ClassVar[Along] = {"qweight": (-1, 8), "scales": (-1, 1), "qzeros": (-1, 8)}

    def __init__(self, stored: Arrays, group: int) -> None:
        super().__init__(stored)
        self.group = group
        self.columns = {"qweight": (-2, 1), "scales": (-2, group), "qzeros": (-2, group)}

    def values(self) -> torch.Tensor:
        codes, zeros = (self.eights(self.stored[name]) for name in ("qweight", "qzeros"))
        group = np.arange(codes.shape[0]) // self.group
        scale = self.stored["scales"].float().numpy()
        return torch.from_numpy(((codes - zeros[group]).astype(np.float32) * scale[group]).T.copy())

    @staticmethod
    def eights(words: torch.Tensor) -> np.ndarray:
        """Outputs 0 to 7 lie in a word's nibbles as 0, 2, 4, 6, 1, 3, 5, 7."""
        codes = unpack(words, 4)
        plain = np.empty_like(codes)
        for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            plain[..., output::8] = codes[..., nibble::8]
        return plain


class Gptq(Weight):
    def __init__(self, stored: Arrays, bits: int, group: int, act_order: bool) -> None:
        super().__init__(stored)
        self.bits, self.group = bits, group
        per_word = 32 // bits
        self.rows = {"qweight": (-1, 1), "scales": (-1, 1), "qzeros": (-1, per_word)}
        self.columns = {"qweight": (-2, per_word), "g_idx": (-1, 1)}
        if not act_order:  # else the inputs of any part belong to groups all over the tensor
            self.columns = {**self.columns, "scales": (-2, group), "qzeros": (-2, group)}

    def values(self) -> torch.Tensor:
        codes = unpack(self.stored["qweight"].T, self.bits).T
        zeros = unpack(self.stored["qzeros"], self.bits) + 1
        group = np.arange(codes.shape[0]) // self.group
        if "g_idx" in self.stored:
            group = self.stored["g_idx"].numpy()
        scale = self.stored["scales"].float().numpy()
        return torch.from_numpy(((codes - zeros[group]).astype(np.float32) * scale[group]).T.copy())


def unpack(words: torch.Tensor, bits: int) -> np.ndarray:
    """The codes in I32 words along the last dim, lowest bits first."""
    unsigned = words.contiguous().numpy().view(np.uint32)
    codes = [(unsigned >> np.uint32(shift)) & np.uint32(2**bits - 1) for shift in range(0, 32, bits)]
    return np.stack(codes, -1).reshape(*unsigned.shape[:-1], -1).astype(np.int64)


def fp4(packed: torch.Tensor) -> torch.Tensor:
    """Two E2M1 numbers of each byte, the low nibble first, computed from sign, exponent and mantissa."""
    codes = torch.stack((packed % 16, packed // 16), -1).flatten(-2).int()
    sign = 1 - 2 * (codes // 8).float()
    exponent, mantissa = codes // 2 % 4, (codes % 2).float()
    size = torch.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent.float() - 1))
    return sign * size


def find(stored: Arrays, base: str, quantisation: dict[str, Any]) -> Weight:
    """The weight stored as ``base`` + suffix (``model.layers.0.mlp.up_proj.``, or that of a stack, without a dot)."""

    def took(*suffixes: str) -> Arrays:
        return {s: stored[base + s] for s in suffixes if base + s in stored}

    groups = quantisation.get("config_groups", {"": {"weights": quantisation}})
    settings = next(iter(groups.values()))["weights"]
    bits, group = settings.get("bits", settings.get("num_bits")), settings.get("group_size")
    if base + "qweight" in stored:
        if quantisation["quant_method"] == "awq":
            return Awq(took("qweight", "scales", "qzeros"), group)
        return Gptq(
            took("qweight", "scales", "qzeros", "g_idx"), bits, group, bool(quantisation.get("desc_act", False))
        )
    if base + "weight_packed" in stored:
        if stored[base + "weight_scale"].dtype == torch.uint8:
            return Mxfp4Linear(took("weight_packed", "weight_scale"))
        if stored[base + "weight_packed"].dtype == torch.uint8:
            return Nvfp4(took("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"))
        names = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
        return PackedInt(took(*names), bits, group, settings.get("actorder") == "group")
    if base + "_blocks" in stored:
        return Mxfp4(took("_blocks", "_scales"))
    if base + "_weight_scale_2" in stored:
        beside = ("weight_scale", "weight_scale_2", "input_scale")
        return Nvfp4({"weight": stored[base], **{name: stored[f"{base}_{name}"] for name in beside}})
    if base + "scale" in stored:
        if stored[base + "weight"].dtype == torch.int8:
            return Mxfp4Linear(took("weight", "scale"))
        rows, columns = quantisation["weight_block_size"]
        return Fp8Block(took("weight", "scale"), (rows, columns))
    if base + "weight_scale_inv" in stored:
        if stored[base + "weight_scale_inv"].dtype == torch.uint8:
            return Mxfp8(took("weight", "weight_scale_inv"), (1, 32))
        return Fp8Block(took("weight", "weight_scale_inv"))
    if base + "weight_scale_2" in stored:
        return Nvfp4(took("weight", "weight_scale", "weight_scale_2", "input_scale"))
    if base + "weight_scale" not in stored:
        return Weight({"weight": stored[base + "weight" if base + "weight" in stored else base]})
    weight, scale = stored[base + "weight"], stored[base + "weight_scale"]
    if weight.dtype == torch.uint8:
        return Mxfp4Linear(took("weight", "weight_scale"))
    kind = PerTensor if scale.ndim < 2 else PerChannel if scale.shape[-2:] == (weight.shape[-2], 1) else Fp8Block
    return kind(took("weight", "weight_scale", "input_scale"))
