"""When a failed request is repeated, and after how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

REPEATED = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses that may be different the next time."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Up to ``attempts`` requests, with waits that double from ``first_s`` to at most ``most_s`` seconds.

    Each wait is a random part of that, so that many clients do not come back at the same moment. A server's ``Retry-After``
    is obeyed, up to ``patience_s`` seconds.
    """

    attempts: int = 5
    first_s: float = 0.5
    most_s: float = 8.0
    patience_s: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, attempt: int, retry_after: str | None = None) -> bool:
        """Wait after the failure of ``attempt``, counted from 1; return False, at once, where there should be no more.

        >>> waits = []
        >>> retry = Retry(attempts=2, sleep=waits.append)
        >>> retry.pause(1, "7"), waits, retry.pause(2), retry.pause(1, "3600")
        (True, [7.0], False, False)
        """
        if attempt >= self.attempts:
            return False
        wait = min(self.most_s, self.first_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        if retry_after is not None and retry_after.strip().isdecimal():  # a date is left to the wait above
            wait = max(wait, float(retry_after))
            if wait > self.patience_s:
                return False
        self.sleep(wait)
        return True
