"""The options in ``--model-loader-extra-config``, each checked before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from loadmaster.errors import UsageError
from loadmaster.plan.proof import STAGING_BYTES
from loadmaster.plan.waivers import WaiverRequest


@dataclass(frozen=True, slots=True)
class Options:
    """``staging_bytes`` limits what is read ahead, ``num_readers`` is a number of threads, ``verify`` proves what was loaded.

    ``direct``: parameters are written directly if possible (``auto``), always (True; otherwise loading is refused) or never
    (False). ``num_readers`` None: a number that suits the device. ``waive`` requests waivers of stored tensors that no
    parameter needs; they are checked against a plan, so parameters must then be written directly.
    """

    staging_bytes: int = STAGING_BYTES
    num_readers: int | None = None
    verify: bool = True
    direct: bool | Literal["auto"] = "auto"
    waive: tuple[WaiverRequest, ...] = ()


def read_options(given: object) -> Options:
    """Return the options that vLLM received.

    >>> read_options({"staging_bytes": 1048576, "num_readers": 2})
    Options(staging_bytes=1048576, num_readers=2, verify=True, direct='auto', waive=())

    Raises:
        UsageError: an option is unknown, or has a wrong value.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"--model-loader-extra-config is {given!r}, expected a JSON object")
    known = [f.name for f in fields(Options)]
    if unknown := [str(k) for k in given if k not in known]:
        raise UsageError(
            f"--model-loader-extra-config: the load format loadmaster has no option {', '.join(sorted(unknown))}",
            hint=f"known: {', '.join(known)}",
        )
    for name, value in given.items():
        wanted = _WANTED[name]
        if not wanted.accepts(value):
            raise UsageError(f"--model-loader-extra-config: {name} is {value!r}, expected {wanted.words}")
    waive = tuple(WaiverRequest.parse(text) for text in given.get("waive", ()))
    if waive and given.get("direct") is False:
        raise UsageError('--model-loader-extra-config: waive needs a plan, and {"direct": false} loads without one')
    return Options(**{**given, "waive": waive})


@dataclass(frozen=True, slots=True)
class _Wanted:
    words: str
    accepts: Callable[[object], bool]


_NUMBER = _Wanted("a whole number of at least 1", lambda v: type(v) is int and v >= 1)
_FLAG = _Wanted("true or false", lambda v: type(v) is bool)
_DIRECT = _Wanted('"auto", true or false', lambda v: type(v) is bool or v == "auto")
_WAIVE = _Wanted(
    'a list of texts "PATTERN=REASON"', lambda v: isinstance(v, list) and all(isinstance(text, str) for text in v)
)
_WANTED = {"staging_bytes": _NUMBER, "num_readers": _NUMBER, "verify": _FLAG, "direct": _DIRECT, "waive": _WAIVE}
