"""Every model around a known language model, by the name of its architecture."""

from __future__ import annotations

from functools import cache
from typing import Final

from loadmaster.architectures import audio_wrappers, vision_wrappers
from loadmaster.architectures.wrapper import Wrapper

WRAPPERS: Final[tuple[Wrapper, ...]] = (*vision_wrappers.WRAPPERS, *audio_wrappers.WRAPPERS)
"""Each architecture occurs once."""


@cache
def wrapper_of(architecture: str) -> Wrapper | None:
    """Return the wrapper of an architecture; None where it is none."""
    return next((w for w in WRAPPERS if architecture in w.architectures), None)
