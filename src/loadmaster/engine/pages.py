"""The pages of the KV cache: which are free, which are in use, and which hold a prefix that another request can reuse.

A page is numbered; its memory is on the workers. A full page whose tokens have been computed can be found by the hash of
all tokens up to its end. It stays findable after its last user is gone, until its place is needed: the least recently used
goes first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def page_hash(previous: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of a page: of its tokens, and of all pages before it (``previous``, empty for the first)."""
    return hashlib.blake2b(previous + array("q", token_ids).tobytes(), digest_size=16).digest()


class PagePool:
    """``num_pages`` pages of ``page_size`` tokens each.

    ``adjacent``: a request is given adjacent pages where possible. Attention on CPUs then reads one block of memory instead
    of gathering pages; GPUs do not need it.
    """

    def __init__(self, num_pages: int, page_size: int, *, adjacent: bool = True) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._adjacent = adjacent
        self._blank = dict.fromkeys(range(num_pages))  # free, and not findable
        self._idle: OrderedDict[int, bytes] = OrderedDict()  # free, but findable; least recently used first
        self._users: dict[int, int] = {}
        self._by_hash: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}
        self.most_used = 0  # pages that were in use at the same time

    @property
    def num_free(self) -> int:
        """Pages that no request uses."""
        return len(self._blank) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages that requests use."""
        return self.num_pages - self.num_free

    def allocate(self, count: int, after: int | None = None) -> list[int] | None:
        """Return ``count`` pages that continue page ``after``, adjacent if possible; or None if fewer are free."""
        if count > self.num_free:
            return None
        pages: list[int] = []
        for _ in range(count):
            after = self._take(after)
            pages.append(after)
        self.most_used = max(self.most_used, self.num_used)
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give up one use of each page. A page without users is free, and stays findable if it was."""
        for page in reversed(list(pages)):  # the end of a prefix is reused less often than its beginning
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                if page in self._hashes:
                    self._idle[page] = self._hashes[page]
                else:
                    self._blank[page] = None

    def find(self, hash_: bytes) -> int | None:
        """Return the page that holds a prefix, or None."""
        return self._by_hash.get(hash_)

    def is_idle(self, page: int) -> bool:
        """Return whether no request uses a page that can be found."""
        return page in self._idle

    def use(self, pages: Iterable[int]) -> None:
        """Add one user to each of several pages that `find` returned."""
        for page in pages:
            self._idle.pop(page, None)
            self._users[page] = self._users.get(page, 0) + 1
        self.most_used = max(self.most_used, self.num_used)

    def publish(self, page: int, hash_: bytes) -> None:
        """Make a full, computed page findable. If another page holds the same prefix already, that one stays."""
        if hash_ not in self._by_hash and page not in self._hashes:
            self._by_hash[hash_] = page
            self._hashes[page] = hash_

    def _take(self, after: int | None) -> int:
        following = None if after is None else after + 1
        if following is not None and following in self._blank:
            page = following
        elif self._blank:
            page = self._start() if self._adjacent else next(iter(self._blank))
        else:
            page = following if following in self._idle else next(iter(self._idle))  # type: ignore[assignment]
        if page in self._idle:
            del self._idle[page]
            del self._by_hash[self._hashes.pop(page)]
        else:
            del self._blank[page]
        self._users[page] = 1
        return page

    def _start(self) -> int:
        """Return where a request should begin: the middle of the longest run of blank pages, or page 0 if all are blank.

        From the middle, the request before the run can grow too.
        """
        if len(self._blank) == self.num_pages:
            return 0
        best_start = best_length = length = 0
        previous = None
        for page in sorted(self._blank):
            length = length + 1 if previous is not None and page == previous + 1 else 1
            previous = page
            if length > best_length:
                best_start, best_length = page - length + 1, length
        return best_start + best_length // 2
