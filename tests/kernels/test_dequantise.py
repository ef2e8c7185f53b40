"""The arithmetic of every format against packages that define it, or packers written from its definition.

What is decoded is cut at the same time: a region of a weight has the values of the whole one there, also where the cut
falls inside a block or a group.
"""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from loadmaster.architectures.algebra import Leaf, Region, decode, leaves, restrict, stored, whole
from loadmaster.formats import (
    FP4,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MXFP4,
    MXFP4_LINEAR,
    MXFP4_PACKED,
    NVFP4,
    NVFP4_MODELOPT,
    Format,
    awq,
    fp8_block,
    gptq,
    int4_packed,
    mxfp8,
)
from loadmaster.loader.operations import evaluate, view_of
from loadmaster.torch_dtypes import TORCH

Tensors = dict[str, torch.Tensor]
ROWS, COLUMNS = 48, 160
REGIONS: tuple[Region, ...] = (
    ((0, 48), (0, 160)),
    ((8, 24), (0, 160)),
    ((0, 48), (32, 64)),
    ((0, 48), (48, 112)),  # groups of 32, 64 and 128 begin and end elsewhere
    ((16, 40), (80, 160)),
)
NAMES = {dtype: name for name, dtype in TORCH.items()}


def decoded(format_: Format, tensors: Tensors, shape: tuple[int, ...], region: Region) -> torch.Tensor:
    """Decode a region of a weight: its components are cut as a plan cuts them."""
    there = tuple(c for c in format_.components if c.suffix in tensors)
    operands = tuple(
        stored(Leaf(c.suffix, NAMES[tensors[c.suffix].dtype], c.shape(shape), False)) for c in there
    )  # a scalar's stored shape may be [] and is [1] here
    e = restrict(decode(Format(format_.name, there, format_.stack), operands, shape), region)
    return evaluate(e, (view_of(v, tensors[v.leaf.name].reshape(v.leaf.shape)) for v in leaves(e)))


def assert_decodes(format_: Format, tensors: Tensors, expected: torch.Tensor, exact: Any = None) -> None:
    for region in REGIONS:
        part = expected[tuple(slice(a, b) for a, b in region)].float()
        made = decoded(format_, tensors, tuple(expected.shape), region)
        assert made.dtype == torch.float32
        assert torch.equal(made if exact is None else made.to(exact), part if exact is None else part.to(exact)), region


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def numbers(random: torch.Generator, *shape: int, least: float = -1.0, most: float = 1.0) -> torch.Tensor:
    return torch.rand(shape, generator=random) * (most - least) + least


# compressed-tensors ---------------------------------------------------------------------------------------------------

SCHEMES: dict[str, tuple[str, Format, dict[str, Any], tuple[int, ...]]] = {
    "fp8 for the tensor": ("float-quantized", FP8_TENSOR, {"type": "float", "num_bits": 8, "strategy": "tensor"}, (1,)),
    "fp8 by channel": (
        "float-quantized",
        FP8_CHANNEL,
        {"type": "float", "num_bits": 8, "strategy": "channel"},
        (ROWS, 1),
    ),
    "fp8 in blocks": (
        "float-quantized",
        fp8_block((32, 64), suffix="weight_scale"),
        {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [32, 64]},
        (2, 3),
    ),
    "int8 by channel": (
        "int-quantized",
        INT8_CHANNEL,
        {"type": "int", "num_bits": 8, "strategy": "channel"},
        (ROWS, 1),
    ),
    **{
        f"int{bits} {how}, {'symmetric' if symmetric else 'with zero points'}": (
            "pack-quantized",
            int4_packed(group, zero_points=not symmetric, bits=bits),
            {"type": "int", "num_bits": bits, "strategy": how, "group_size": group, "symmetric": symmetric},
            (ROWS, COLUMNS // group if group else 1),
        )
        for bits in (4, 8)
        for how, group in (("group", 32), ("channel", None))
        for symmetric in (True, False)
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_those_of_compressed_tensors(name: str, dtype: torch.dtype, random: torch.Generator) -> None:
    """With scales in F32 exactly; with scales in BF16, whose products it rounds at once, after the same rounding."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kind, format_, weights, shape = SCHEMES[name]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    state = {
        "weight": numbers(random, ROWS, COLUMNS).to(dtype),
        "weight_scale": numbers(random, *shape, least=0.05, most=0.1).to(dtype),
    }
    if not weights.get("symmetric", True):
        state["weight_zero_point"] = torch.randint(-4, 4, shape, generator=random).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(kind)
    compressed = compressor.compress(state, scheme)
    expected = compressor.decompress(compressed, scheme)["weight"]
    if format_ is FP8_TENSOR:
        compressed["weight_scale"] = compressed["weight_scale"].reshape(())  # some are stored [], some [1]
    assert_decodes(format_, compressed, expected, dtype)


@pytest.mark.parametrize("format_", [NVFP4, NVFP4_MODELOPT], ids=["compressed-tensors", "ModelOpt"])
def test_values_of_nvfp4_are_those_of_compressed_tensors(format_: Format, random: torch.Generator) -> None:
    """ModelOpt writes the same with the reciprocal of the global scale, here a power of two."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(type="float", num_bits=4, strategy="tensor_group", group_size=16, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressed = {
        "weight_packed": torch.randint(0, 256, (ROWS, COLUMNS // 2), generator=random, dtype=torch.uint8),
        "weight_scale": numbers(random, ROWS, COLUMNS // 16, least=1.0, most=400.0).to(torch.float8_e4m3fn),
        "weight_global_scale": torch.tensor([512.0 if format_ is NVFP4_MODELOPT else 777.0]),
    }
    decompressed = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").decompress(compressed, scheme)
    if format_ is NVFP4_MODELOPT:
        compressed["weight"] = compressed.pop("weight_packed")
        compressed["weight_scale_2"] = 1 / compressed.pop("weight_global_scale")
    assert_decodes(format_, compressed, decompressed["weight"], decompressed["weight"].dtype)


# transformers ---------------------------------------------------------------------------------------------------------


def test_values_of_mxfp4_are_those_of_transformers(random: torch.Generator) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    shape = (3, ROWS, COLUMNS)
    tensors = {
        "_blocks": torch.randint(0, 256, (3, ROWS, COLUMNS // 32, 16), generator=random, dtype=torch.uint8),
        "_scales": torch.randint(100, 140, (3, ROWS, COLUMNS // 32), generator=random, dtype=torch.uint8),
    }
    expected = convert_moe_packed_tensors(**{k.strip("_"): t for k, t in tensors.items()}, dtype=torch.float32)
    expected = expected.transpose(1, 2)  # transformers' experts lie (in, out)
    for region in (whole(shape), ((1, 3), (8, 24), (0, 160)), ((0, 1), (0, 48), (32, 96))):
        made = decoded(MXFP4.stacked(), tensors, shape, region)
        assert torch.equal(made, expected[tuple(slice(a, b) for a, b in region)])


def test_values_of_fp4_are_those_of_mxfp4_stored_apart(random: torch.Generator) -> None:
    codes = torch.randint(0, 256, (ROWS, COLUMNS // 2), generator=random, dtype=torch.uint8)
    exponents = torch.randint(100, 140, (ROWS, COLUMNS // 32), generator=random, dtype=torch.uint8)
    blocks = {"_blocks": codes.unflatten(-1, (-1, 16)), "_scales": exponents}
    stored = {
        FP4: {"weight": codes.view(torch.int8), "scale": exponents.view(torch.float8_e8m0fnu)},
        MXFP4_LINEAR: {"weight": codes, "weight_scale": exponents},
        MXFP4_PACKED: {"weight_packed": codes, "weight_scale": exponents},
    }
    expected = decoded(MXFP4, blocks, (ROWS, COLUMNS), whole((ROWS, COLUMNS)))
    for region in (whole((ROWS, COLUMNS)), ((8, 24), (0, 160)), ((0, 48), (32, 96)), ((1, 2), (16, 80))):
        for format_, tensors in stored.items():
            made = decoded(format_, tensors, (ROWS, COLUMNS), region)
            assert torch.equal(made, expected[tuple(slice(a, b) for a, b in region)])


def test_values_of_mxfp8_are_those_of_compressed_tensors(random: torch.Generator) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(type="float", num_bits=8, strategy="group", group_size=32, scale_dtype=torch.uint8)
    compressed = {
        "weight": numbers(random, ROWS, COLUMNS, most=400.0).to(torch.float8_e4m3fn),
        "weight_scale": torch.randint(110, 130, (ROWS, COLUMNS // 32), generator=random, dtype=torch.uint8),
    }
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    decompressed = BaseCompressor.get_value_from_registry("mxfp8-quantized").decompress(compressed, scheme)["weight"]
    assert_decodes(mxfp8(), compressed, decompressed, decompressed.dtype)


@pytest.mark.parametrize("format_", [FP8_TENSOR, NVFP4, NVFP4_MODELOPT])
def test_a_stack_is_decoded_as_each_of_it_alone(format_: Format, random: torch.Generator) -> None:
    """Also where the format has one number a tensor: a stack has one for each member."""
    shape, stack = (ROWS, COLUMNS), format_.stacked()
    of_each = []
    for _ in range(3):
        made: Tensors = {}
        for c in format_.components:
            size = c.shape(shape)
            codes = torch.randint(0, 64, size, generator=random, dtype=torch.uint8)
            dtype = c.dtypes[0]
            made[c.suffix] = codes if dtype == "U8" else codes.float().add(1).to(TORCH[dtype])
        of_each.append(made)
    together = {c.suffix: torch.stack([t[c.suffix] for t in of_each]) for c in stack.components}
    for region in REGIONS[:3]:
        made_ = decoded(stack, together, (3, *shape), ((1, 3), *region))
        assert torch.equal(made_, torch.stack([decoded(format_, t, shape, region) for t in of_each[1:]]))


# By definition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [torch.float32, torch.float8_e8m0fnu])
def test_fp8_blocks_are_values_times_the_factor_of_their_block(scale: torch.dtype) -> None:
    weight = torch.arange(ROWS * COLUMNS).remainder(15).reshape(ROWS, COLUMNS).float()  # exact in E4M3
    factors = 2.0 ** torch.arange(6).reshape(2, 3)
    expected = weight * factors.repeat_interleave(32, 0)[:ROWS].repeat_interleave(64, 1)[:, :COLUMNS]
    tensors = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale_inv": factors.to(scale)}
    assert_decodes(fp8_block((32, 64)), tensors, expected)


def pack(codes: torch.Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Pack codes along ``dim``: the ``i``-th lowest bits of a word hold element ``order[i]`` of its ``32 / bits``."""
    per_word = 32 // bits
    moved = codes.movedim(dim, -1).long().unflatten(-1, (-1, per_word))
    places = order or tuple(range(per_word))
    words = sum(moved[..., element] << (bits * i) for i, element in enumerate(places))
    assert isinstance(words, torch.Tensor)
    return words.to(torch.uint32).view(torch.int32).movedim(-1, dim).contiguous()


def grouped(random: torch.Generator, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (in, out), zero points (groups, out) and factors that are powers of two (groups, out)."""
    num_groups = -(-COLUMNS // group)
    codes = torch.randint(0, 2**bits, (COLUMNS, ROWS), generator=random)
    zeros = torch.randint(1, 2**bits, (num_groups, ROWS), generator=random)
    return codes, zeros, (2.0 ** torch.randint(-8, 0, (num_groups, ROWS), generator=random)).half()


@pytest.mark.parametrize("group", [32, 64, None])
def test_awq_is_code_less_zero_times_scale_with_outputs_interleaved(group: int | None, random: torch.Generator) -> None:
    codes, zeros, scales = grouped(random, 4, group or COLUMNS)
    by_input = torch.arange(COLUMNS) // (group or COLUMNS)
    expected = ((codes - zeros[by_input]) * scales[by_input].float()).T
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {"qweight": pack(codes, 4, 1, order), "scales": scales, "qzeros": pack(zeros, 4, 1, order)}
    assert_decodes(awq(group), tensors, expected)


@pytest.mark.parametrize("index", ["none", "stored", "by activation"])
@pytest.mark.parametrize("group", [32, 64, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_is_code_less_zero_plus_one_times_scale(
    bits: int, group: int | None, index: str, random: torch.Generator
) -> None:
    codes, zeros, scales = grouped(random, bits, group or COLUMNS)
    by_input = torch.arange(COLUMNS) // (group or COLUMNS)
    if index == "by activation":
        by_input = by_input[torch.randperm(COLUMNS, generator=random)]
    expected = ((codes - zeros[by_input]) * scales[by_input].float()).T
    tensors = {"qweight": pack(codes, bits, 0), "scales": scales, "qzeros": pack(zeros - 1, bits, 1)}
    if index != "none":
        tensors["g_idx"] = by_input.int()
    assert_decodes(gptq(group, bits=bits, act_order=index == "by activation"), tensors, expected)


@pytest.mark.parametrize(
    "format_", [awq(32), gptq(32), int4_packed(32), NVFP4, MXFP4], ids=lambda format_: format_.name
)
def test_a_code_that_has_all_bits_set_is_not_negative(format_: Format) -> None:
    """Words are I32: shifts of negative ones must not carry the sign into the codes."""
    shape = (32, 32)
    tensors: Tensors = {}
    for component in format_.components:
        dtype = TORCH[component.dtypes[0]]
        dims = component.shape(shape)
        if component.optional or component.waived:
            continue
        if dtype == torch.int32:
            full = -1 if component is format_.components[0] else 0
            tensors[component.suffix] = torch.full(dims, full, dtype=dtype)
        else:
            fill = 255 if component is format_.components[0] else 127 if dtype == torch.uint8 else 1
            tensors[component.suffix] = torch.ones(prod(dims)).mul(fill).to(dtype).reshape(dims)
    value = {"awq": 15.0, "gptq4": 14.0, "int4_packed": 7.0}.get(format_.name, -6.0)
    assert decoded(format_, tensors, shape, whole(shape)).unique().tolist() == [value]


@pytest.mark.parametrize("index", ["stored", "by activation"])
def test_packed_ints_take_the_group_of_each_input_from_g_idx(index: str, random: torch.Generator) -> None:
    """compressed-tensors' ``actorder: group``, which it no longer reads itself."""
    codes, _, scales = grouped(random, 4, 32)
    by_input = torch.arange(COLUMNS) // 32
    if index == "by activation":
        by_input = by_input[torch.randperm(COLUMNS, generator=random)]
    expected = ((codes - 8) * scales[by_input].float()).T
    tensors = {"weight_packed": pack(codes, 4, 0).T.contiguous(), "weight_scale": scales.T.contiguous()}
    tensors["weight_g_idx"] = by_input.int()
    assert_decodes(int4_packed(32, act_order=index == "by activation"), tensors, expected)
