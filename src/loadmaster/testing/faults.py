"""The error that the checks raise."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 12
"""Most sentences that are printed; one wrong line of a table can cause many."""


class FamilyFaults(AssertionError):  # noqa: N818  # a failed assertion of a test
    """A family's tables are wrong: ``faults`` are sentences, each of which names the table."""

    def __init__(self, family: str, faults: tuple[str, ...]) -> None:
        self.family, self.faults = family, faults
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        super().__init__("\n  ".join([f"the family {family!r} is wrong:", *faults[:SHOWN], *more]))


def expect_none(family: str, faults: Iterable[str]) -> None:
    """Raise if there are any ``faults``; each sentence is reported once.

    Raises:
        FamilyFaults: there are.
    """
    sentences = tuple(dict.fromkeys(faults))
    if sentences:
        raise FamilyFaults(family, sentences)
