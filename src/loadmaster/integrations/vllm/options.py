"""What ``--model-loader-extra-config`` may say: few options, each checked before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from loadmaster.errors import UsageError
from loadmaster.loader.readers import default_readers
from loadmaster.plan.verify import STAGING_BYTES


@dataclass(frozen=True, slots=True)
class Options:
    """``staging_bytes`` bounds what is read ahead, ``num_readers`` are threads, ``verify`` asks for the proof after loading."""

    staging_bytes: int = STAGING_BYTES
    num_readers: int = default_readers()
    verify: bool = True


def read_options(given: object) -> Options:
    """Return the options that vLLM was given.

    >>> read_options({"staging_bytes": 1048576, "num_readers": 2})
    Options(staging_bytes=1048576, num_readers=2, verify=True)

    Raises:
        UsageError: an unknown option, or a value that it cannot have.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"--model-loader-extra-config is {given!r}, expected a JSON object")
    known: dict[str, Any] = {f.name: f.default for f in fields(Options)}
    if unknown := [str(k) for k in given if k not in known]:
        raise UsageError(
            f"--model-loader-extra-config: the load format loadmaster has no option {', '.join(sorted(unknown))}",
            hint=f"known: {', '.join(known)}",
        )
    for name, value in given.items():
        kind = type(known[name])
        if type(value) is not kind or (kind is int and value < 1):
            wanted = "true or false" if kind is bool else "a number from 1 on"
            raise UsageError(f"--model-loader-extra-config: {name} is {value!r}, expected {wanted}")
    return Options(**given)
