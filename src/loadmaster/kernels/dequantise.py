"""Dequantisation of every format, the plain reference: stored components → float32 values.

Each function takes the components of `loadmaster.formats` in the order of its table, cut alike, with any leading dims, and
``origin``, where the cut begins in the whole tensor: blocks and groups keep the grid of the whole. One float32 product an
element, so any split of the rows gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loadmaster.formats import MLX_BITS, Format
from loadmaster.formats.bitsandbytes import NESTED_BLOCK, read_state, state_of

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of FP4 by code: sign, two exponent bits, one mantissa bit (OCP Microscaling Formats, v1.0)."""

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word holds output 0, 1, … of its eight."""


def dequantise(format_: Format, operands: Sequence[Tensor], shape: Sequence[int], origin: Sequence[int]) -> Tensor:
    """Return the float32 values ``[*shape]`` of a weight in ``format_`` from its components.

    Raises:
        KeyError: a format without arithmetic, which is a bug: every table has its function here.
        ValueError: a component contradicts the headers (`loadmaster.formats.bitsandbytes.read_state`).
    """
    by_suffix = {c.suffix: o for c, o in zip(format_.components, operands, strict=True)}
    return ARITHMETIC[format_.name](format_, by_suffix, (shape[-2], shape[-1]), (origin[-2], origin[-1]))


def dequantise_blocks(values: Tensor, scale: Tensor, block: tuple[int, int], phase: tuple[int, int] = (0, 0)) -> Tensor:
    """Return ``values * scale`` in float32, each factor spread over its block.

    ``values`` ``[..., rows, columns]`` in any float format, ``scale`` ``[..., ceil((phase + rows) / block), …]`` in
    float32 or a format that it contains. ``phase`` is how many rows and columns of the first block lie before the first
    element; the last blocks may be ragged.
    """
    rows, columns = values.shape[-2:]
    by_row = torch.arange(phase[0], phase[0] + rows, device=values.device) // block[0]
    by_column = torch.arange(phase[1], phase[1] + columns, device=values.device) // block[1]
    factors = scale.to(torch.float32).index_select(-2, by_row).index_select(-1, by_column)
    return values.to(torch.float32).mul_(factors)


Pair = tuple[int, int]
Components = dict[str, Tensor]


def _span(format_: Format, suffix: str, dim: int) -> int | None:
    """Return the span of a component along a logical dim counted from the last two; None where it is not cut by it."""
    component = next(c for c in format_.components if c.suffix == suffix)
    return next(
        (g.span for g in component.grains if g.kind in ("cover", "whole") and g.dim == dim + format_.stack), None
    )


def _groups(
    format_: Format, suffix: str, count: int, origin: int, device: torch.device, index: Tensor | None = None
) -> Tensor:
    """Return for each of ``count`` inputs from ``origin`` the group it belongs to, among those that are held.

    ``index`` is the ``g_idx`` stored for these inputs, which counts the groups of the whole tensor.
    """
    span = _span(format_, suffix, 1)
    if span is None:
        return torch.zeros(count, dtype=torch.int64, device=device)
    component = next(c for c in format_.components if c.suffix == suffix)
    held = 0 if any(g.kind == "whole" for g in component.grains) else origin // span
    groups = torch.arange(origin, origin + count, device=device) // span if index is None else index.to(torch.int64)
    return groups - held


def _fp8_block(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    block = format_.block[-2:]
    scale = c[format_.components[1].suffix]
    return dequantise_blocks(c["weight"], scale, (block[0], block[1]), (origin[0] % block[0], origin[1] % block[1]))


def _scaled(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    """FP8 and INT8 with a factor for the tensor ``[..., 1]`` or for each row ``[..., rows, 1]``."""
    scale = c[format_.components[1].suffix]
    if format_.name == "fp8_tensor":
        scale = scale[..., None]
    return c["weight"].to(torch.float32).mul_(scale.to(torch.float32))


def _nibbles(words: Tensor) -> Tensor:
    """Return the two 4-bit codes of each byte, low nibble first: ``[..., n]`` → ``[..., 2 n]``."""
    return torch.stack((words & 15, words >> 4), dim=-1).flatten(-2)


def _e2m1(codes: Tensor) -> Tensor:
    return torch.tensor(E2M1, dtype=torch.float32, device=codes.device)[codes.to(torch.int64)]


def _nvfp4(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    packed = "weight_packed" if "weight_packed" in c else "weight"
    factors = c["weight_scale"].to(torch.float32)
    if packed == "weight":
        factors = factors * c["weight_scale_2"].to(torch.float32)[..., None]
    else:
        factors = factors / c["weight_global_scale"].to(torch.float32)[..., None]
    groups = _groups(format_, "weight_scale", shape[1], origin[1], factors.device)
    values = _e2m1(_nibbles(c[packed])[..., : shape[1]])
    out: Tensor = values * factors.index_select(-1, groups)
    return out


def _mxfp4(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    values = _e2m1(_nibbles(c["_blocks"]))  # [..., rows, blocks, 32]
    exponents = c["_scales"].to(torch.int32) - 127
    out: Tensor = torch.ldexp(values, exponents[..., None]).flatten(-2)[..., : shape[1]]
    return out


def _fp4(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    packed = format_.components[0].suffix
    return _by_powers(format_, _e2m1(_nibbles(c[packed].view(torch.uint8))[..., : shape[1]]), c, origin[1])


def _mxfp8(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    return _by_powers(format_, c["weight"].to(torch.float32), c, origin[1])


def _by_powers(format_: Format, values: Tensor, c: Components, origin: int) -> Tensor:
    """Return ``values`` ``[..., rows, inputs]`` times the power of two of each group; ``origin`` is the first input."""
    scale = format_.components[1].suffix
    factors = c[scale].view(torch.float8_e8m0fnu).to(torch.float32)  # also stored as bytes
    out: Tensor = values * factors.index_select(-1, _groups(format_, scale, values.shape[-1], origin, factors.device))
    return out


def _unpack(words: Tensor, bits: int, dim: int) -> Tensor:
    """Return the codes in I32 words, lowest bits first, along ``dim``: ``n`` words become ``n * 32 / bits`` codes."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    codes = (words.unsqueeze(dim) >> shifts.reshape(*shifts.shape, *([1] * (-dim - 1)))) & (2**bits - 1)
    out: Tensor = codes.flatten(dim - 1, dim)
    return out


def _packed_int(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    bits = int(format_.name.removeprefix("int").removesuffix("_packed"))
    codes: Tensor = _unpack(c["weight_packed"], bits, -1)[..., : shape[1]].to(torch.float32) - 2 ** (bits - 1)
    groups = _groups(format_, "weight_scale", shape[1], origin[1], codes.device, c.get("weight_g_idx"))
    if "weight_zero_point" in c:
        zeros = _unpack(c["weight_zero_point"], bits, -2)[..., : shape[0], :].to(torch.float32) - 2 ** (bits - 1)
        codes -= zeros.index_select(-1, groups)
    out: Tensor = codes * c["weight_scale"].to(torch.float32).index_select(-1, groups)
    return out


def _awq(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    order = torch.tensor(AWQ_ORDER, device=c["qweight"].device)

    def unpack(words: Tensor) -> Tensor:
        codes = _unpack(words, 4, -1).unflatten(-1, (-1, 8)).index_select(-1, order)
        made: Tensor = codes.flatten(-2)[..., : shape[0]].to(torch.float32)
        return made

    groups = _groups(format_, "scales", shape[1], origin[1], order.device)
    codes: Tensor = unpack(c["qweight"]) - unpack(c["qzeros"]).index_select(-2, groups)
    out: Tensor = codes * c["scales"].to(torch.float32).index_select(-2, groups)
    return torch.transpose(out, -1, -2)


def _gptq(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    bits = int(format_.name.removeprefix("gptq"))
    groups = _groups(format_, "scales", shape[1], origin[1], c["qweight"].device, c.get("g_idx"))
    codes: Tensor = _unpack(c["qweight"], bits, -2)[..., : shape[1], :].to(torch.float32)
    zeros = _unpack(c["qzeros"], bits, -1)[..., : shape[0]].to(torch.float32) + 1
    codes -= zeros.index_select(-2, groups)
    out: Tensor = codes * c["scales"].to(torch.float32).index_select(-2, groups)
    return torch.transpose(out, -1, -2)


def _mlx(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    bits, words = int(format_.name.removeprefix("mlx")), c["weight"].view(torch.int32)
    codes = _unpack(words, bits, -1) if 32 % bits == 0 else _unpack_run(words, bits)
    groups = _groups(format_, "scales", shape[1], origin[1], words.device)
    scales, biases = (c[name].to(torch.float32).index_select(-1, groups) for name in ("scales", "biases"))
    out: Tensor = codes[..., : shape[1]].to(torch.float32).mul_(scales).add_(biases)
    return out


def _unpack_run(words: Tensor, bits: int) -> Tensor:
    """Return the codes in runs of words ``[..., runs, words]``: in each, eight codes take ``bits`` bytes, lowest bits first."""
    eights = words.contiguous().view(torch.uint8).unflatten(-1, (-1, bits)).to(torch.int64)
    shifts = torch.arange(0, 8 * bits, 8, device=words.device)
    together = (eights << shifts).sum(-1, keepdim=True)
    codes: Tensor = (together >> torch.arange(0, 8 * bits, bits, device=words.device)) & (2**bits - 1)
    return codes.flatten(-3)


def _mlx_mxfp4(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    return _fp4(format_, {**c, "weight": c["weight"].contiguous().view(torch.uint8)}, shape, origin)


def _mlx_mxfp8(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    values = c["weight"].contiguous().view(torch.float8_e4m3fn)[..., : shape[1]]
    return _by_powers(format_, values.to(torch.float32), c, origin[1])


def _mlx_nvfp4(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    values = _e2m1(_nibbles(c["weight"].contiguous().view(torch.uint8))[..., : shape[1]])
    groups = _groups(format_, "scales", shape[1], origin[1], values.device)
    factors: Tensor = c["scales"].view(torch.float8_e4m3fn).to(torch.float32).index_select(-1, groups)
    return values.mul_(factors)


def _bitsandbytes(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    """4-bit codes with a factor for each block; which nested block a factor is in depends on its place in the whole weight."""
    factors, block, suffix = c["weight.absmax"], format_.block[1], state_of(format_)
    assert suffix is not None
    offset = read_state(format_, c[suffix].cpu().numpy().tobytes())
    if "weight.nested_absmax" in c:
        rows, columns = (torch.arange(n, device=factors.device) for n in factors.shape)
        places = (origin[0] + rows)[:, None] * (format_.of[1] // block) + origin[1] // block + columns
        outer = c["weight.nested_absmax"][places // NESTED_BLOCK]
        factors = c["weight.nested_quant_map"][factors.to(torch.int64)].mul_(outer).add_(offset)
    groups = _groups(format_, "weight.absmax", shape[1], origin[1], factors.device)
    codes = torch.stack((c["weight"] >> 4, c["weight"] & 15), dim=-1).flatten(-2)  # the first in the high nibble
    out: Tensor = c["weight.quant_map"][codes.to(torch.int64)].mul_(factors.index_select(-1, groups))
    return out


def _bitsandbytes_int8(format_: Format, c: Components, shape: Pair, origin: Pair) -> Tensor:
    return c["weight"].to(torch.float32).mul_(c["SCB"]).mul_(1 / 127)


ARITHMETIC: dict[str, Callable[[Format, Components, Pair, Pair], Tensor]] = {
    "fp8_block": _fp8_block,
    "fp8_tensor": _scaled,
    "fp8_channel": _scaled,
    "int8_channel": _scaled,
    "nvfp4": _nvfp4,
    "nvfp4_modelopt": _nvfp4,
    "mxfp4": _mxfp4,
    "fp4": _fp4,
    "mxfp4_packed": _fp4,
    "mxfp4_linear": _fp4,
    "mxfp8": _mxfp8,
    "int4_packed": _packed_int,
    "int8_packed": _packed_int,
    "awq": _awq,
    "gptq4": _gptq,
    "gptq8": _gptq,
    **{f"mlx{bits}": _mlx for bits in MLX_BITS},
    "mlx_mxfp4": _mlx_mxfp4,
    "mlx_mxfp8": _mlx_mxfp8,
    "mlx_nvfp4": _mlx_nvfp4,
    "bitsandbytes_nf4": _bitsandbytes,
    "bitsandbytes_fp4": _bitsandbytes,
    "bitsandbytes_int8": _bitsandbytes_int8,
}
"""Format name -> arithmetic."""
