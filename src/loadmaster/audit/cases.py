"""All cases of the audit."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from loadmaster.audit.case import CUT, LAST, ONE, SPREAD, WHERE, Case
from loadmaster.audit.dense import dense_cases
from loadmaster.audit.experts import expert_cases
from loadmaster.audit.fp8 import fp8_cases
from loadmaster.audit.packed import packed_cases
from loadmaster.audit.several_kinds import cases_of_several_kinds
from loadmaster.synth import PRESETS

MOE = (
    *("glm-5.1-fp8", "glm-5.2-fp8", "deepseek-v3", "deepseek-v3.2", "kimi-k2", "qwen2-moe", "qwen3-moe", "qwen3-next"),
    *("mixtral", "minimax-m2", "glm-4.5-air", "gpt-oss-bf16", "llama-4", "granite-moe"),
)
DRAFTS = ("glm-5.1-fp8", "deepseek-v3")
ONE_HEAD = ("smollm2",)
"""Presets whose heads do not divide by two."""


def sound_cases() -> Iterator[Case]:
    """Yield every preset without a defect: on one rank, a last stage, sliced, with experts spread; and drafts."""
    for preset in PRESETS:
        yield Case(f"{preset}/sound", preset)
        if PRESETS[preset].format is None:
            ranks = [LAST, *([] if preset in ONE_HEAD else [CUT]), *([SPREAD] if preset in MOE else [])]
            yield from (Case(f"{preset}/sound{WHERE[r]}", preset, rank=r) for r in ranks)
    for preset in DRAFTS:
        yield from (Case(f"{preset}/sound-draft{WHERE[r]}", preset, rank=r, draft="mtp") for r in (ONE, LAST))


CASES: Final[tuple[Case, ...]] = (
    *dense_cases(),
    *fp8_cases(),
    *expert_cases(),
    *packed_cases(),
    *cases_of_several_kinds(),
    *sound_cases(),
)


def find_cases(pattern: str) -> tuple[Case, ...]:
    """Return the cases whose names match a glob.

    >>> [c.name for c in find_cases("smollm2/sound*")]
    ['smollm2/sound', 'smollm2/sound@pp1of2']
    """
    return tuple(c for c in CASES if fnmatchcase(c.name, pattern))
