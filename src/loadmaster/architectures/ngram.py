"""The rows of n-gram tables: each hash head has separate rows, as many as a prime number.

A token's n-grams are hashed once for each order and head. The heads of all tables of a model have consecutive primes, so no two
heads have the same number of rows. A table is divided between heads, never inside one.

Sources: ``vllm/models/deepseek_v41/common/engram.py``, ``modeling_qwen4_exp.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from loadmaster.errors import ConfigError
from loadmaster.limits import HASH_HEADS


def head_rows(first: int, num_tables: int, num_heads: int) -> tuple[tuple[int, ...], ...]:
    """Return the rows of each head of each table: consecutive primes of at least ``first``.

    >>> head_rows(10, 2, 3)
    ((11, 13, 17), (19, 23, 29))

    Raises:
        ConfigError: there are more heads than any model has.
    """
    count = num_tables * num_heads
    if count > HASH_HEADS.value:
        raise ConfigError(f"config.json describes {HASH_HEADS.exceeded(count)}", hint=HASH_HEADS.hint)
    rows = tuple(islice(_primes(first), count))
    return tuple(rows[at : at + num_heads] for at in range(0, count, num_heads))


def _primes(first: int) -> Iterator[int]:
    number = max(first, 2)
    while True:
        if _is_prime(number):
            yield number
        number += 1


def _is_prime(number: int) -> bool:
    """Return whether a number below 2^32 is prime, by the test of Miller and Rabin with witnesses that suffice there."""
    for small in (2, 3, 5, 7, 11, 13, 61):
        if number % small == 0:
            return number == small
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in (2, 7, 61):
        value = pow(witness, odd, number)
        powers = [value]
        for _ in range(twos - 1):
            value = value * value % number
            powers.append(value)
        if powers[0] != 1 and number - 1 not in powers:
            return False
    return True
