"""The page of number formats: their components, and what becomes of a cut, read off the tables."""

from __future__ import annotations

from loadmaster.formats import (
    BITSANDBYTES_INT8,
    FP4,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MLX_FLOATS,
    MXFP4,
    MXFP4_LINEAR,
    MXFP4_PACKED,
    NVFP4,
    NVFP4_MODELOPT,
    Component,
    Format,
    Grain,
    awq,
    bitsandbytes,
    fp8_block,
    gptq,
    int4_packed,
    mlx,
    mxfp8,
)
from loadmaster.formats.table import EVERY, OPEN

FORMATS: dict[str, Format] = {
    "FP8 in blocks (DeepSeek, GLM, Qwen3, MiniMax; compressed-tensors, strategy block)": fp8_block(),
    "FP8 a tensor (vLLM, ModelOpt, compressed-tensors)": FP8_TENSOR,
    "FP8 a channel (compressed-tensors)": FP8_CHANNEL,
    "INT8 a channel (compressed-tensors, int-quantized)": INT8_CHANNEL,
    "INT4, packed (compressed-tensors, pack-quantized, groups of 32 here)": int4_packed(32, zero_points=True),
    "NVFP4 (compressed-tensors)": NVFP4,
    "NVFP4 (ModelOpt)": NVFP4_MODELOPT,
    "MXFP4 (gpt-oss)": MXFP4,
    "MXFP4 (compressed-tensors, Kimi-K3)": MXFP4_PACKED,
    "MXFP4, one weight (MiMo-V2.6)": MXFP4_LINEAR,
    "FP4 (DeepSeek-V4)": FP4,
    "MXFP8 (ModelOpt, compressed-tensors; MiniMax-M3 with `weight_scale_inv`)": mxfp8(),
    "AWQ (gemm, groups of 128 here)": awq(128),
    "GPTQ (groups of 128 here)": gptq(128),
    "GPTQ with desc_act": gptq(128, act_order=True),
    "MLX (affine, 4 bits in groups of 64 here)": mlx(4, 64),
    "MLX (affine, 3 bits: 32 codes in three words)": mlx(3, 64),
    **{f"MLX ({mode})": format_ for (mode, _, _), format_ in MLX_FLOATS.items()},
    "bitsandbytes, 4 bits (nf4, nested factors)": bitsandbytes("nf4", nested=True),
    "bitsandbytes, 8 bits (LLM.int8)": BITSANDBYTES_INT8,
}

DIMS = ("out", "in")

INTRODUCTION = """\
How each format is stored, and what becomes of a cut of the out dim (column parallel) or the in dim (row parallel). Along a
dim, a component's element stands for that many elements of the weight.

- **refused**: a packed word cannot be split. The layout's unit of that dim grows to the word, and a size that does not divide
  is refused with those that do (`layout-indivisible`).
- **keeps the phase**: a scale covers a block, and a cut inside it is rounded outward. The rank holds the factors that cover
  its part, on the grid of the whole tensor, and the parameter's `Grid` says which block is the first and where in it the
  part begins.
- **replicated**: every rank of the stage holds all of it.

A weight whose parts are stored in different forms (a quantised `q_proj` beside a plain `k_proj`, a plain expert among
quantised ones, scales in two number formats) is dequantised into the model's dtype when it is fused; where all parts are
quantised, `parts-differ` says so. Components in brackets may be absent.

**MLX** quantises embeddings and routers too, and lets the config give other bits to single modules. A module is quantised if
it has `scales`. Embeddings and routers are decoded while they are loaded. mlx-lm stacks experts, and for some models splits
or changes stored values: only architectures whose values it leaves as they are can be planned, the others are refused.
MLX computes `code * scale + bias` in the dtype of the scales; here it is computed in F32 and rounded once.

**bitsandbytes** stores a 4-bit weight as one column of codes, row after row, in blocks of 64. Which nested factor a block has
depends on its place in the whole weight, so all 4-bit weights are decoded into the model's dtype while they are loaded, each
rank its part. Rows that are not whole blocks are refused (`dtype-inadmissible`). `quant_state` must agree with the headers:
loading checks it, and `verify` reports it (`value-contradicts`)."""


def parts() -> list[str]:
    """Return the page's parts: the introduction, then a table a format."""
    made = [INTRODUCTION]
    for title, format_ in FORMATS.items():
        rows = [
            f"| {_named(c)} | {', '.join(c.dtypes)} | {_shape(c)} | {_cut(c, 0)} | {_cut(c, 1)} |"
            for c in format_.components
        ]
        made += [
            f"## {title}",
            "\n".join(
                ["| component | dtype | stored as | cut of out | cut of in |", "| --- | --- | --- | --- | --- |", *rows]
            ),
        ]
    return made


def _named(component: Component) -> str:
    return f"[`{component.suffix}`]" if component.optional else f"`{component.suffix}`"


def _shape(component: Component) -> str:
    if component.is_scalar:
        return "one number"
    dims = [_length(g) for g in component.grains]
    if component.joined in ("all", "column"):
        return f"({' × '.join(dims)}{', 1' if component.joined == 'column' else ''})"
    if component.joined == "last":
        dims[-2:] = [" × ".join(d for d in dims[-2:] if d != "1")]
    return f"({', '.join(dims)})"


def _length(grain: Grain) -> str:
    if grain.kind == "inner":
        return "any length" if grain.span == OPEN else str(grain.span)
    if grain.dim == EVERY:
        return f"out × in / {grain.span}"
    return DIMS[grain.dim] if grain.span == 1 else f"{DIMS[grain.dim]} / {grain.span}"


def _cut(component: Component, dim: int) -> str:
    if component.waived:
        return "not read"
    along = [g for g in component.grains if g.dim == dim and g.kind != "inner"]
    if not along or along[0].kind == "whole":
        return "replicated"
    if along[0].span == 1:
        return "cut"
    return f"refused inside {along[0].span}" if along[0].kind == "exact" else "keeps the phase"
