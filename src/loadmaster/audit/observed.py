"""The observations of one load: a value that the loading process sends back to be judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["loaded", "raised", "hung", "crashed"]


NOWHERE = "is stored, and the engine has no parameter that holds it"
"""What is said of a stored parameter whose name in the engine is not known."""


@dataclass(frozen=True)
class Attempt:
    """The outcome of a load.

    ``built``: the model had been built. ``num_read`` tensors were offered to the model's own loader before the end.
    ``error`` is the type of the exception, ``message`` the messages of its chain, ``logged`` the warnings and errors that the
    engine logged, ``raised_in`` the last function of the engine that the exception passed through, and ``loader`` the model's
    own loader at that time. ``gaps`` are parameters that were not written, as (name, missing bytes, total bytes);
    ``differences`` those that differ from the sound checkpoint, as (name, how); ``num_compared`` of ``num_params`` could be
    compared with it, and ``narrowed`` of these are rounded to a narrower format.
    """

    outcome: Outcome
    built: bool = False
    num_read: int = 0
    error: str = ""
    message: str = ""
    logged: tuple[str, ...] = ()
    raised_in: str = ""
    loader: str = ""
    gaps: tuple[tuple[str, int, int], ...] = ()
    differences: tuple[tuple[str, str], ...] = ()
    num_params: int = 0
    num_compared: int = 0
    narrowed: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Attempt:
        """Return the attempt that `as_json` describes."""
        tuples = {
            "logged": tuple(values["logged"]),
            "gaps": tuple((n, a, b) for n, a, b in values["gaps"]),
            "differences": tuple((n, w) for n, w in values["differences"]),
        }
        return Attempt(**{**values, **tuples})
