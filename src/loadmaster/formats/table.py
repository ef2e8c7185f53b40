"""The tables of formats: for each stored dim of each component, which logical dim it runs along and in what grain.

A grain says how a dim may be cut. ``exact`` is packing: a cut inside is refused. ``cover`` is a scale: a cut is rounded
outward on the grid of the whole tensor. ``whole`` is never cut: every rank holds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Final, Literal

SCALE = ("F32", "BF16", "F16")
"""Number formats in which scales of a row, a group or a tensor are published."""


@dataclass(frozen=True, slots=True)
class Grain:
    """One stored dim of a component: element ``k`` belongs to logical elements ``k * span`` to ``(k + 1) * span``.

    ``dim`` is the logical dim: 0 out, 1 in; ``EVERY`` counts all elements of the weight, in their order. ``inner`` dims belong to
    no logical dim: they always have ``span`` elements, or with ``OPEN`` as many as the headers say.
    """

    dim: int
    span: int = 1
    kind: Literal["exact", "cover", "whole", "inner"] = "exact"

    def length(self, size: int) -> int:
        """Return how many stored elements cover ``size`` logical ones, counted from a block edge."""
        return -(-size // self.span)


@dataclass(frozen=True, slots=True)
class Component:
    """One stored tensor of an encoded weight: its name's suffix, the dtypes it may have, a grain for each stored dim.

    Without grains it is one number for the whole tensor, of shape ``[]`` or ``[1]``. ``optional`` components may be
    absent. ``waived`` says why a component is left unread; ``zeros``: it may only be left unread if all its values are zero.
    ``joined`` says which dims of the grains are stored as one: the ``last`` two, ``all`` (``[n]``), or all as a ``column``
    (``[n, 1]``). ``free``: its values are not bounded as factors are, because they may be negative or are codes.
    """

    suffix: str
    dtypes: tuple[str, ...]
    grains: tuple[Grain, ...] = ()
    optional: bool = False
    waived: str | None = None
    zeros: bool = False
    joined: Literal["last", "all", "column"] | None = None
    free: bool = False

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number for the whole tensor."""
        return not self.grains

    def dims(self, logical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the size of each grain's dim for a weight of ``logical`` shape; that of a scalar is ``[1]``."""
        if self.is_scalar:
            return (1,)
        sizes = (prod(logical) if g.dim == EVERY else logical[g.dim] for g in self.grains)
        return tuple(g.span if g.kind == "inner" else g.length(n) for g, n in zip(self.grains, sizes, strict=True))

    def flat(self) -> Component:
        """Return the component with one dim for its last two, blocks and the words of each: the same bytes.

        >>> MXFP4.components[0].shape((4, 64)), MXFP4.components[0].flat().shape((4, 64))
        ((4, 2, 16), (4, 32))
        """
        *others, blocks, words = self.grains
        assert words.kind == "inner" and blocks.kind == "exact", "its last dim is not one of words"
        return replace(self, grains=(*others, replace(blocks, span=blocks.span // words.span)))

    def shape(self, logical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape for a weight of ``logical`` shape: its dims, where they are not joined.

        >>> Component("weight", ("U8",), (OUT, Grain(1, 2)), joined="column").shape((128, 64))
        (4096, 1)
        """
        dims = self.dims(logical)
        if self.joined == "last":
            return (*dims[:-2], dims[-2] * dims[-1])
        return dims if self.joined is None else (prod(dims), 1)[: 2 if self.joined == "column" else 1]


@dataclass(frozen=True, slots=True)
class Format:
    """A quantisation format. The first component holds the values, and its dtype identifies the format.

    ``name`` selects the arithmetic (`loadmaster.kernels`); ``stack`` counts leading dims (experts) that all
    components have before those of the table. ``zero_filled``: whole words may be appended along either dim, with zeros in
    every component, and their values are zero. ``everywhere``: embeddings and routers may be stored in it too. ``transient``: no
    parameter stays in it, all are decoded while they are loaded. ``of`` is the shape of the whole weight, in a format whose
    values depend on their place in it; it is set where a weight is known (`for_weight`).
    """

    name: str
    components: tuple[Component, ...]
    stack: int = 0
    zero_filled: bool = False
    everywhere: bool = False
    transient: bool = False
    of: tuple[int, ...] = ()

    @property
    def block(self) -> tuple[int, ...]:
        """Elements that one scale spans along each logical dim, in order; every dim must have a scale dim."""
        return tuple(g.span for g in self.components[1].grains)

    def scale_dim(self, dim: int) -> int | None:
        """Return the stored dim of the scale (the second component) that runs along a logical dim, or None."""
        grains = self.components[1].grains
        return next((d for d, g in enumerate(grains) if g.dim == dim and g.kind != "inner"), None)

    @property
    def is_run(self) -> bool:
        """Whether its components are runs of numbers in which no dim of the weight is left: it has no stacks of experts."""
        return any(c.joined in ("all", "column") for c in self.components)

    def for_weight(self, shape: tuple[int, ...], stored: Mapping[str, tuple[int, ...]]) -> Format:
        """Return the format of a weight of ``shape``: ``of`` is set where its values need it, and open lengths are as ``stored``.

        ``stored`` gives the stored shape of each component by suffix.
        """
        if not self.is_run:
            return self
        is_open = Grain(-1, OPEN, "inner")
        components = tuple(
            replace(c, grains=(Grain(-1, prod(stored[c.suffix]), "inner"),))
            if c.grains == (is_open,) and c.suffix in stored
            else c
            for c in self.components
        )
        return replace(self, components=components, of=shape)

    def stacked(self, numbers: int = 1) -> Format:
        """Return the format of a stack of such weights: one more leading dim, logical and stored.

        One number per tensor becomes a column, ``[experts, 1]``; or several, where each of ``numbers`` parts has its own.
        """
        assert not self.is_run, "nothing is stacked in a run"
        lead, one = Grain(0), Grain(-1, numbers, "inner")
        components = tuple(
            replace(
                c,
                grains=(lead, *(g if g.kind == "inner" else replace(g, dim=g.dim + 1) for g in c.grains or (one,))),
            )
            for c in self.components
        )
        return replace(self, components=components, stack=self.stack + 1)

    def exact_span(self, dim: int) -> int:
        """Return the largest packed word along a logical dim: cuts of it must be multiples."""
        return max((g.span for c in self.components for g in c.grains if g.dim == dim and g.kind == "exact"), default=1)

    def can_reorder(self, dim: int, width: int) -> bool:
        """Return whether runs of ``width`` elements of a logical dim can be reordered while they stay encoded.

        Each element must have separate stored elements along the dim, or a factor that holds for whole runs.

        >>> [fp8_block().can_reorder(0, width) for width in (64, 128, 192)]
        [True, True, False]
        """
        along = [(g.span, g.kind) for c in self.components for g in c.grains if g.dim == dim and g.kind != "inner"]
        return not self.is_run and all(n == 1 or (kind == "cover" and n % width == 0) for n, kind in along)


OUT, IN = Grain(0), Grain(1)

EVERY: Final = -2
"""The dim of a grain that counts all elements of a weight, row after row."""

OPEN: Final = 0
"""The span of an inner dim whose length differs from weight to weight."""


@cache
def fp8_block(
    block: tuple[int, int] = (128, 128),
    *,
    suffix: str = "weight_scale_inv",
    input_scale: bool = False,
    powers: bool = False,
) -> Format:
    """Return the FP8 block format of DeepSeek-V3: E4M3 values, one factor (F32, or a power of two) for each block.

    ``value = weight * weight_scale_inv`` (values are multiplied by the scale, despite its name). Source:
    https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md. compressed-tensors calls the scale
    ``weight_scale``, may have an ``input_scale``, and makes scales in the dtype of the weights that it quantises. ``powers``:
    factors are always stored as powers of two.
    """
    rows, columns = block
    dtypes = ("F8_E8M0",) if powers else (*SCALE, "F8_E8M0") if input_scale else ("F32", "F8_E8M0")
    scale = Component(suffix, dtypes, (Grain(0, rows, "cover"), Grain(1, columns, "cover")))
    more = (_INPUT_SCALE,) if input_scale else ()
    return Format("fp8_block", (Component("weight", ("F8_E4M3",), (OUT, IN)), scale, *more))


_INPUT_SCALE = Component("input_scale", SCALE, optional=True)


def _fp8_tensor(scale: str, of_inputs: Component) -> Format:
    return Format("fp8_tensor", (Component("weight", ("F8_E4M3",), (OUT, IN)), Component(scale, SCALE), of_inputs))


FP8_TENSOR = _fp8_tensor("weight_scale", _INPUT_SCALE)
"""FP8 with one factor for the whole tensor, and one for its activations where those are static. vLLM, ModelOpt,
compressed-tensors."""

FP8_TENSOR_OTHERS = (
    _fp8_tensor("weight_scale_inv", Component("activation_scale", SCALE, optional=True)),
    _fp8_tensor("qscale_weight", Component("qscale_act", SCALE, optional=True)),
)
"""The same as transformers names it (``integrations/finegrained_fp8.py``), and as Mistral does in checkpoints with its own names
(``mistral_large_3.py`` in ``vllm/model_executor/models``)."""

FP8_CHANNEL = Format(
    "fp8_channel",
    (
        Component("weight", ("F8_E4M3",), (OUT, IN)),
        Component("weight_scale", SCALE, (OUT, Grain(-1, 1, "inner"))),
        _INPUT_SCALE,
    ),
)
"""FP8 with one factor for each output channel, stored ``[out, 1]``. compressed-tensors, ``strategy: channel``."""

INT8_CHANNEL = Format(
    "int8_channel",
    (
        Component("weight", ("I8",), (OUT, IN)),
        Component("weight_scale", SCALE, (OUT, Grain(-1, 1, "inner"))),
        _INPUT_SCALE,
    ),
)
"""INT8 with one factor for each output channel. compressed-tensors, ``format: int-quantized``."""


@cache
def int4_packed(group: int | None, *, zero_points: bool = False, bits: int = 4, act_order: bool = False) -> Format:
    """Return compressed-tensors' ``pack-quantized``: ``32 / bits`` values of a row in each I32, a factor for each group.

    ``group`` None means one group per row. Values are ``(code - 2^(bits-1) - zero_point) * scale``. Zero points are packed
    along the output dim. ``weight_shape`` restates the shape. With ``act_order`` (``actorder: group``) the groups are not
    in the order of the inputs, as in GPTQ. Source: ``compressed_tensors/compressors/pack_quantized``.
    """
    per_word = 32 // bits
    kind: Literal["whole", "cover"] = "whole" if act_order else "cover"
    by_group = Grain(1, group, kind) if group else Grain(-1, 1, "inner")
    components = [
        Component("weight_packed", ("I32",), (OUT, Grain(1, per_word))),
        Component("weight_scale", SCALE, (OUT, by_group)),
        Component("weight_shape", ("I64", "I32"), (Grain(-1, 2, "inner"),), waived="weight_shape restates the shape"),
    ]
    if zero_points:
        components.append(Component("weight_zero_point", ("I32",), (Grain(0, per_word), by_group)))
    components.append(Component("weight_g_idx", ("I32", "I64"), (IN,), optional=True))
    return Format(f"int{bits}_packed", tuple(components))


NVFP4 = Format(
    "nvfp4",
    (
        Component("weight_packed", ("U8",), (OUT, Grain(1, 2))),
        Component("weight_scale", ("F8_E4M3",), (OUT, Grain(1, 16, "cover"))),
        Component("weight_global_scale", ("F32",)),
        Component("input_global_scale", ("F32",), optional=True),
    ),
)
"""compressed-tensors' NVFP4: two E2M1 values a byte (low nibble first), an E4M3 factor for each 16, and a global one
that is divided by: ``value = code * weight_scale / weight_global_scale``."""

NVFP4_MODELOPT = Format(
    "nvfp4_modelopt",
    (
        Component("weight", ("U8",), (OUT, Grain(1, 2))),
        Component("weight_scale", ("F8_E4M3",), (OUT, Grain(1, 16, "cover"))),
        Component("weight_scale_2", ("F32",)),
        _INPUT_SCALE,
    ),
)
"""ModelOpt's NVFP4: as above, and the global factor is multiplied in: ``value = code * weight_scale * weight_scale_2``."""

MXFP4 = Format(
    "mxfp4",
    (
        Component("_blocks", ("U8",), (OUT, Grain(1, 32), Grain(-1, 16, "inner"))),
        Component("_scales", ("U8",), (OUT, Grain(1, 32))),
    ),
    zero_filled=True,
)
"""gpt-oss' MXFP4: 32 E2M1 values in 16 bytes (low nibble first), and a biased exponent for each 32:
``value = code * 2^(scale - 127)``. Values and factors are stored in separate tensors, both cut at whole blocks only."""


def _e2m1(name: str, values: tuple[str, str], scale: str, scale_dtypes: tuple[str, ...]) -> Format:
    """Return a format of E2M1 values, two a byte (low nibble first), and a power of two for each 32 along the in dim.

    ``values`` are the suffix and the dtype of the values, ``scale`` and ``scale_dtypes`` those of the powers.
    """
    suffix, dtype = values
    powers = Component(scale, scale_dtypes, (OUT, Grain(1, 32, "cover")))
    return Format(name, (Component(suffix, (dtype,), (OUT, Grain(1, 2))), powers), zero_filled=True)


MXFP4_PACKED = _e2m1("mxfp4_packed", ("weight_packed", "U8"), "weight_scale", ("U8", "F8_E8M0"))
"""compressed-tensors' MXFP4 (``mxfp4-pack-quantized``): ``value = code * 2^(scale - 127)``. Source:
``compressed_tensors/compressors/mxfp4``."""

FP4 = _e2m1("fp4", ("weight", "I8"), "scale", ("F8_E8M0",))
"""DeepSeek-V4's FP4: ``value = code * scale``. Source: ``vllm/models/deepseek_v4/quant_config.py``."""

MXFP4_LINEAR = _e2m1("mxfp4_linear", ("weight", "U8"), "weight_scale", ("U8",))
"""MXFP4 of MiMo-V2.6's experts: ``value = code * 2^(scale - 127)``. Source: ``Mxfp4MoEMethod`` in vLLM."""

MXFP4_LINEAR_INV = _e2m1("mxfp4_linear", ("weight", "U8"), "weight_scale_inv", ("U8",))
"""The same as Ling-3 names it. Source: ``bailing_moe_v3.py`` in ``vllm/model_executor/models``."""


@cache
def mxfp8(*, suffix: str = "weight_scale") -> Format:
    """Return MXFP8: E4M3 values, and a biased exponent for each 32 along the in dim: ``value = weight * 2^(scale - 127)``.

    ModelOpt and compressed-tensors (``mxfp8-quantized``) call the exponents ``weight_scale``, MiniMax-M3 and Inkling-2
    ``weight_scale_inv``. Sources: ``modelopt.py`` in ``vllm/model_executor/layers/quantization``;
    ``compressed_tensors/compressors/mxfp8``.
    """
    powers = Component(suffix, ("U8", "F8_E8M0"), (OUT, Grain(1, 32, "cover")))
    return Format("mxfp8", (Component("weight", ("F8_E4M3",), (OUT, IN)), powers))


@cache
def awq(group: int | None) -> Format:
    """Return AWQ's ``gemm`` packing: eight outputs in each I32 (in the order 0, 2, 4, 6, 1, 3, 5, 7), groups along in.

    ``value = (code - zero) * scale``. ``group`` None means one group for all inputs. Source: AutoAWQ,
    ``awq/modules/linear/gemm.py``.
    """
    by_group = Grain(1, group, "cover") if group else Grain(-1, 1, "inner")
    return Format(
        "awq",
        (
            Component("qweight", ("I32",), (IN, Grain(0, 8))),
            Component("scales", ("F16", "BF16"), (by_group, OUT)),
            Component("qzeros", ("I32",), (by_group, Grain(0, 8))),
        ),
    )


@cache
def gptq(group: int | None, *, bits: int = 4, act_order: bool = False) -> Format:
    """Return GPTQ's packing: ``32 / bits`` inputs in each I32, zero points packed along out, groups along in.

    ``value = (code - (zero + 1)) * scale[g_idx]``. With ``act_order`` the groups are not in the order of the inputs: a
    cut of the inputs keeps all of them. Source: AutoGPTQ, ``auto_gptq/nn_modules/qlinear``.
    """
    per_word = 32 // bits
    kind: Literal["whole", "cover"] = "whole" if act_order else "cover"
    by_group = Grain(1, group, kind) if group else Grain(-1, 1, "inner")
    return Format(
        f"gptq{bits}",
        (
            Component("qweight", ("I32",), (Grain(1, per_word), OUT)),
            Component("scales", ("F16", "BF16"), (by_group, OUT)),
            Component("qzeros", ("I32",), (by_group, Grain(0, per_word))),
            Component("g_idx", ("I32", "I64"), (IN,), optional=True),
            _NO_BIAS,
        ),
    )


_NO_BIAS = Component(
    "bias",
    ("F16", "BF16", "F32"),
    (OUT,),
    optional=True,
    waived="a bias of zeros, which GPTQ stores beside layers that have none",
    zeros=True,
)
"""Of a layer that has a bias in the model, the bias is a tensor of the model, and not this."""
