"""The table of formats: for each stored dim of each component, which logical dim it runs along and in what grain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grain:
    """One stored dim of a component: element ``k`` belongs to logical elements ``k * span`` to ``(k + 1) * span``.

    ``exact`` grains are packing: a cut inside one is impossible. Covering grains are scales: a cut is rounded outward,
    and a ragged last block is normal.
    """

    dim: int
    span: int
    exact: bool

    def length(self, size: int) -> int:
        """Return how many stored elements cover ``size`` logical ones, counted from a block edge."""
        return -(-size // self.span)


@dataclass(frozen=True, slots=True)
class Component:
    """One stored tensor of an encoded weight: its name's suffix, the dtypes it may have, a grain for each stored dim."""

    suffix: str
    dtypes: tuple[str, ...]
    grains: tuple[Grain, ...]

    def shape(self, logical: tuple[int, ...]) -> tuple[int, ...]:
        """Return the stored shape for a weight of ``logical`` shape."""
        return tuple(g.length(logical[g.dim]) for g in self.grains)


@dataclass(frozen=True, slots=True)
class Format:
    """A quantisation format. The first component holds the values, and its dtype tells the format."""

    name: str
    components: tuple[Component, ...]

    @property
    def block(self) -> tuple[int, ...]:
        """Span of the scale (the second component) along each logical dim, in elements."""
        return tuple(g.span for g in self.components[1].grains)


def fp8_block(block: tuple[int, int] = (128, 128)) -> Format:
    """Return the FP8 block format of DeepSeek-V3: E4M3 values, one F32 factor for each block of rows × columns.

    ``value = weight * weight_scale_inv`` (the scale is multiplied in, whatever its name says). Source:
    https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md.
    """
    return Format(
        "fp8_block",
        (
            Component("weight", ("F8_E4M3",), (Grain(0, 1, True), Grain(1, 1, True))),
            Component("weight_scale_inv", ("F32",), (Grain(0, block[0], False), Grain(1, block[1], False))),
        ),
    )
