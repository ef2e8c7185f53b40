"""Types of fields, and the error that names one. Types are strict: neither true nor "5" is a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from loadmaster.errors import RequestError, clip
from loadmaster.workers import SamplingParams

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class FieldError(RequestError):
    """A request is refused because of one field, ``param``, if it is known."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestModel(BaseModel):
    """The body of a request. Fields that are not declared are kept, and are one of three kinds.

    ``refused`` are known and not supported; their values, in addition to null, have no effect and are accepted. ``inert`` are
    known and have no effect, with the reason. All others are unknown: see `loadmaster.server.ignored`.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    inert: ClassVar[Mapping[str, str]] = {}

    def refuse_unsupported(self) -> None:
        """Refuse fields that are not supported, unless their values have no effect.

        Raises:
            FieldError: names the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in self.refused and value is not None and not any(_same(value, n) for n in self.refused[name]):
                raise FieldError(f"{name}={clip(repr(value))} is not supported", name)

    def unknown_fields(self) -> list[str]:
        """Return the names of the fields that the server does not know, in the request's order."""
        return [name for name in self.model_extra or {} if name not in self.refused and name not in self.inert]


def with_field(error: RequestError) -> FieldError:
    """Return an error in sampling parameters as one of a field. Such messages begin with the parameter's name."""
    name = error.message.partition(" ")[0]
    return FieldError(error.message, name if name in _PARAMETERS else None)


_PARAMETERS: Final = frozenset(f.name for f in dataclasses.fields(SamplingParams))


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two values are equal. Unlike Python's ==, True and 1 are not.

    >>> _same(1, 1.0), _same(True, 1), _same(0, False)
    (True, False, False)
    """
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
