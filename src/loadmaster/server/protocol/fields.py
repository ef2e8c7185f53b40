"""Types of fields, and the error that names one. Types are strict: neither true nor "5" is a number."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Final

from pydantic import Field

from loadmaster.errors import RequestError
from loadmaster.workers import SamplingParams

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class FieldError(RequestError):
    """A request is refused because of one field, ``param``, if it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def with_field(error: RequestError) -> FieldError:
    """Return an error in sampling parameters as one of a field. Such messages begin with the parameter's name."""
    name = error.message.partition(" ")[0]
    return FieldError(error.message, name if name in _PARAMETERS else None)


_PARAMETERS: Final = frozenset(f.name for f in dataclasses.fields(SamplingParams))
