"""Targets: whose parameters a plan fills. The native one is the family's own table; those of engines are derived from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family, Target
from loadmaster.architectures.targets import vllm_0_32
from loadmaster.errors import UnsupportedError

NATIVE: Final = "native"

ENGINES: Final[Mapping[str, Callable[[Family, Config], Target]]] = {vllm_0_32.NAME: vllm_0_32.target}
"""The engines whose parameters are described, by name and version."""


def find_target(name: str, family: Family, config: Config) -> Target:
    """Return the target ``name`` for a model.

    Raises:
        UnsupportedError: there is no such target, or the model is not described for it; the message says what is in the way.
    """
    if name == NATIVE:
        return Target(NATIVE, family.native)
    if name not in ENGINES:
        known = ", ".join((NATIVE, *ENGINES))
        raise UnsupportedError(f"the target {name!r} is not known", hint=f"known: {known}")
    return ENGINES[name](family, config)
