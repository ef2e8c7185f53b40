"""Checks of what callers of the library pass: a wrong argument raises a typed error that names it.

Only public functions use them. The functions that they call trust their arguments.
"""

from __future__ import annotations

from typing import TypeVar

from loadmaster.errors import ArgumentError

T = TypeVar("T")

SHOWN = 60
"""Characters of a wrong value that an error shows."""


MAX_BITS = 64
"""The most bits of an integer: Python refuses to print very large ones."""


def is_huge(value: object) -> bool:
    """Return whether a value is an integer of more than `MAX_BITS` bits."""
    return isinstance(value, int) and value.bit_length() > MAX_BITS


def shown(value: object) -> str:
    """Return a value and its type for a message, cut short.

    >>> shown("x" * 100), shown(None)
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…, a str", 'None')
    """
    if value is None:
        return "None"
    if is_huge(value):
        assert isinstance(value, int)
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value) if isinstance(value, (str, bytes, int, float, tuple)) else object.__repr__(value)
    return f"{text if len(text) <= SHOWN else text[:SHOWN] + '…'}, a {type(value).__name__}"


def expect(name: str, value: object, kinds: type[T] | tuple[type[T], ...], expected: str) -> T:
    """Return ``value`` if it is one of ``kinds``; ``expected`` says in words what it should be.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(value, kinds):
        raise ArgumentError(f"{name} is {shown(value)}, expected {expected}")
    return value


def expect_function(name: str, value: object, takes: str, *, optional: bool = True) -> None:
    """Check that ``value`` is a function, or None if it is ``optional``; ``takes`` says in words what it is called with.

    Raises:
        ArgumentError: it is something else.
    """
    if not callable(value) and not (optional and value is None):
        raise ArgumentError(f"{name} is {shown(value)}, expected a function that takes {takes}")


def expect_integer(name: str, value: object) -> int:
    """Return ``value`` if it is an integer of at most 64 bits; True and False are refused.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentError(f"{name} is {shown(value)}, expected an integer")
    if is_huge(value):
        raise ArgumentError(f"{name} is {shown(value)}, expected one of at most {MAX_BITS}")
    return value


def expect_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most`` (None: no upper limit).

    >>> expect_int("rank", 3, 0, 7)
    3

    Raises:
        ArgumentError: it is not an integer, or is out of range.
    """
    number = expect_integer(name, value)
    if number < least or (most is not None and number > most):
        limits = f"{least} to {most}" if most is not None else f"at least {least}"
        raise ArgumentError(f"{name} is {shown(number).removesuffix(', a int')}, expected {limits}")
    return number
