"""What was observed of one load: a value that a process of its own sends back, and that is judged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["loaded", "raised", "hung", "crashed"]


@dataclass(frozen=True)
class Attempt:
    """What became of loading.

    ``built``: the model had been built. ``num_read`` tensors were offered to the model's own loader before the end.
    ``error`` is the type of the exception, ``message`` all that its chain says, ``logged`` the warnings and errors that the
    engine logged, ``raised_in`` the last function of the engine that the exception came through and ``loader`` the model's
    own that was at work. ``gaps`` are parameters that were not written, as (name, bytes missing, bytes in all);
    ``differences`` those that hold something else than the sound checkpoint, as (name, what); ``num_compared`` of
    ``num_params`` could be held against it, and ``narrowed`` of these are rounded to a narrower format.
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
        """Return the attempt that `as_json` was made of."""
        tuples = {
            "logged": tuple(values["logged"]),
            "gaps": tuple((n, a, b) for n, a, b in values["gaps"]),
            "differences": tuple((n, w) for n, w in values["differences"]),
        }
        return Attempt(**{**values, **tuples})
