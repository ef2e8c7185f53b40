"""Targets: the engine whose parameters a plan fills. The native target is the family's own table; others derive from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Family
from loadmaster.architectures.target import Target
from loadmaster.architectures.targets import vllm_0_32, vllm_0_33
from loadmaster.architectures.targets.vllm import Version
from loadmaster.errors import UnsupportedError

NATIVE: Final = "native"
NATIVE_DECODED: Final = "native-decoded"

MakeTarget: TypeAlias = Callable[[Family, Config], Target]


def _native(family: Family, config: Config) -> Target:
    return Target(NATIVE, family.native, has_tables=True)


def _native_decoded(family: Family, config: Config) -> Target:
    """Return the native target without quantised parameters: they are decoded while they are loaded."""
    params = (replace(p, form="plain") if p.form == "stored" else p for p in family.native)
    return Target(NATIVE_DECODED, tuple(params), has_tables=True)


Engine: TypeAlias = Literal["native", "vllm"]

VLLM: Final[Mapping[str, Version]] = {v.name: v for v in (vllm_0_32.VERSION, vllm_0_33.VERSION)}
"""The versions of vLLM that are described, by the names of their targets."""

ENGINES: Final[Mapping[Engine, Mapping[str, MakeTarget]]] = {
    NATIVE: {NATIVE_DECODED: _native_decoded, NATIVE: _native},
    "vllm": {name: version.target for name, version in VLLM.items()},
}
"""Every engine, and the targets that describe its parameters by name; the last is the default."""

_TARGETS: Final = {name: make for targets in ENGINES.values() for name, make in targets.items()}


def newest_target(engine: Engine) -> str:
    """Return the name of an engine's newest target.

    >>> newest_target("native"), newest_target("vllm")
    ('native', 'vllm-0.33')
    """
    return list(ENGINES[engine])[-1]


def target_of_vllm(version: str) -> str | None:
    """Return the target of a version of vLLM; None if it is not described.

    >>> target_of_vllm("0.32.0+cpu"), target_of_vllm("0.31.1")
    ('vllm-0.32', None)
    """
    name = f"vllm-{'.'.join(version.split('.')[:2])}"
    return name if name in VLLM else None


def engine_of(target: str) -> Engine:
    """Return the engine of a target.

    >>> engine_of("vllm-0.32")
    'vllm'
    """
    return next(engine for engine, targets in ENGINES.items() if target in targets)


def find_target(name: str, family: Family, config: Config) -> Target:
    """Return the target ``name`` for a model.

    Raises:
        UnsupportedError: there is no such target, or it does not describe the model; the message says why.
    """
    if name not in _TARGETS:
        raise UnsupportedError(f"unknown target {name!r}", hint=f"known: {', '.join(_TARGETS)}")
    return _TARGETS[name](family, config)
