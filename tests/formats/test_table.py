"""Shapes of each format's tensors for a weight whose last blocks, groups and words are incomplete, computed by hand."""

from __future__ import annotations

import pytest

from loadmaster.formats import (
    BITSANDBYTES_INT8,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MLX_FLOATS,
    MXFP4,
    MXFP4_LINEAR,
    NVFP4,
    NVFP4_MODELOPT,
    Format,
    awq,
    bitsandbytes,
    fp8_block,
    gptq,
    int4_packed,
    mlx,
    mxfp8,
)

OUT, IN = 200, 340
"""25 words of 8 outputs; 340 inputs are 2.7 blocks of 128, 10.6 of 32, 21.3 of 16, and 42.5 words of 8."""

SCALAR = (1,)

SHAPES = [
    (mlx(4, 64), {"weight": (200, 43), "scales": (200, 6), "biases": (200, 6)}),
    (mlx(6, 128), {"weight": (200, 66), "scales": (200, 3), "biases": (200, 3)}),  # 22 runs of three words
    (MLX_FLOATS["mxfp4", 4, 32], {"weight": (200, 43), "scales": (200, 11)}),
    (MLX_FLOATS["mxfp8", 8, 32], {"weight": (200, 85), "scales": (200, 11)}),
    (MLX_FLOATS["nvfp4", 4, 16], {"weight": (200, 43), "scales": (200, 22)}),
    (BITSANDBYTES_INT8, {"weight": (200, 340), "SCB": (200,), "weight_format": SCALAR}),
    (MXFP4_LINEAR, {"weight": (200, 170), "weight_scale": (200, 11)}),
    (mxfp8(), {"weight": (200, 340), "weight_scale": (200, 11)}),
    (fp8_block(), {"weight": (200, 340), "weight_scale_inv": (2, 3)}),
    (fp8_block((64, 32)), {"weight": (200, 340), "weight_scale_inv": (4, 11)}),
    (
        fp8_block(suffix="weight_scale", input_scale=True),
        {"weight": (200, 340), "weight_scale": (2, 3), "input_scale": SCALAR},
    ),
    (FP8_TENSOR, {"weight": (200, 340), "weight_scale": SCALAR, "input_scale": SCALAR}),
    (FP8_CHANNEL, {"weight": (200, 340), "weight_scale": (200, 1), "input_scale": SCALAR}),
    (INT8_CHANNEL, {"weight": (200, 340), "weight_scale": (200, 1), "input_scale": SCALAR}),
    (
        int4_packed(128),
        {"weight_packed": (200, 43), "weight_scale": (200, 3), "weight_shape": (2,), "weight_g_idx": (340,)},
    ),
    (
        int4_packed(None, zero_points=True, bits=8),
        {
            "weight_packed": (200, 85),
            "weight_scale": (200, 1),
            "weight_shape": (2,),
            "weight_zero_point": (50, 1),
            "weight_g_idx": (340,),
        },
    ),
    (
        NVFP4,
        {
            "weight_packed": (200, 170),
            "weight_scale": (200, 22),
            "weight_global_scale": SCALAR,
            "input_global_scale": SCALAR,
        },
    ),
    (
        NVFP4_MODELOPT,
        {"weight": (200, 170), "weight_scale": (200, 22), "weight_scale_2": SCALAR, "input_scale": SCALAR},
    ),
    (MXFP4, {"_blocks": (200, 11, 16), "_scales": (200, 11)}),
    (awq(128), {"qweight": (340, 25), "scales": (3, 200), "qzeros": (3, 25)}),
    (awq(None), {"qweight": (340, 25), "scales": (1, 200), "qzeros": (1, 25)}),
    (gptq(128), {"qweight": (43, 200), "scales": (3, 200), "qzeros": (3, 25), "g_idx": (340,), "bias": (200,)}),
    (
        gptq(32, bits=8),
        {"qweight": (85, 200), "scales": (11, 200), "qzeros": (11, 50), "g_idx": (340,), "bias": (200,)},
    ),
]


@pytest.mark.parametrize(("format_", "shapes"), SHAPES)
def test_each_stored_tensor_covers_the_weight(format_: Format, shapes: dict[str, tuple[int, ...]]) -> None:
    assert {c.suffix: c.shape((OUT, IN)) for c in format_.components} == shapes


@pytest.mark.parametrize(("format_", "shapes"), SHAPES)
def test_a_stack_has_one_leading_dim_more_and_a_scalar_becomes_a_column(
    format_: Format, shapes: dict[str, tuple[int, ...]]
) -> None:
    stacked = format_.stacked()
    assert stacked.stack == 1
    for component, plain in zip(stacked.components, format_.components, strict=True):
        expected = (6, 1) if plain.is_scalar else (6, *shapes[plain.suffix])
        assert component.shape((6, OUT, IN)) == expected


@pytest.mark.parametrize(
    ("format_", "spans"),
    [
        (fp8_block(), (1, 1)),  # a scale is no reason to refuse a cut
        (int4_packed(128), (1, 8)),
        (int4_packed(128, zero_points=True), (8, 8)),
        (int4_packed(128, bits=8), (1, 4)),
        (NVFP4, (1, 2)),
        (MXFP4, (1, 32)),
        (awq(128), (8, 1)),
        (gptq(128), (8, 8)),
    ],
)
def test_a_cut_is_a_multiple_of_the_longest_packed_word(format_: Format, spans: tuple[int, int]) -> None:
    assert (format_.exact_span(0), format_.exact_span(1)) == spans


def test_the_dim_of_the_scale_that_runs_along_a_logical_dim() -> None:
    dims = {f.name: (f.scale_dim(0), f.scale_dim(1)) for f in (fp8_block(), FP8_TENSOR, FP8_CHANNEL, MXFP4, awq(128))}
    assert dims == {
        "fp8_block": (0, 1),
        "fp8_tensor": (None, None),
        "fp8_channel": (0, None),
        "mxfp4": (0, 1),
        "awq": (1, 0),
    }
    assert fp8_block((64, 32)).block == (64, 32)


def test_components_in_a_run_have_no_dims_of_the_weight_and_a_text_has_the_length_that_is_stored() -> None:
    text = "weight.quant_state.bitsandbytes__nf4"
    shapes = {
        "weight": (3072, 1),  # 48 rows of 128 are 96 blocks of 64, and these are less than one nested block
        "weight.absmax": (96,),
        "weight.nested_absmax": (1,),
        "weight.nested_quant_map": (256,),
        "weight.quant_map": (16,),
        text: (170,),
    }
    format_ = bitsandbytes("nf4", nested=True).for_weight((48, 128), {text: (170,)})
    assert format_.is_run and format_.of == (48, 128)
    assert {c.suffix: c.shape((48, 128)) for c in format_.components} == shapes
    nested = format_.components[3]
    assert [nested.shape((rows, 128)) for rows in (128, 129)] == [(1,), (2,)]
