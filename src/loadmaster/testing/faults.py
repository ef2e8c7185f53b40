"""What a check of the kit raises."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 12
"""Most sentences of one failure that are printed; one wrong line of a table can make many."""


class FamilyFaults(AssertionError):  # noqa: N818  # it is what a test asserts, not an error of the kit
    """A family's tables are wrong: ``faults`` are sentences, each of which names the table."""

    def __init__(self, family: str, faults: tuple[str, ...]) -> None:
        self.family, self.faults = family, faults
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        super().__init__("\n  ".join([f"the family {family!r} is wrong:", *faults[:SHOWN], *more]))


def expect_none(family: str, faults: Iterable[str]) -> None:
    """Raise what was found, each sentence once.

    Raises:
        FamilyFaults: something was.
    """
    found = tuple(dict.fromkeys(faults))
    if found:
        raise FamilyFaults(family, found)
