"""How much more host memory this process may use, and what sets the limit: checked before anything is allocated.

The host's available memory, the process's control groups (version 2 and 1) and its own limits are counted.
Memory that only caches files counts as free: the kernel releases it. Swap is not counted.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from loadmaster.errors import LoadError
from loadmaster.findings import gib

_LIMITS: Final = (
    (resource.RLIMIT_AS, "VmSize", "`ulimit -v`, RLIMIT_AS"),
    (resource.RLIMIT_DATA, "VmData", "`ulimit -d`, RLIMIT_DATA"),
)
_WORDS: Final = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "can't start new thread",
    "failed to map segment",
)
"""Messages of torch's host allocator, a new thread or a library's loading when there was no memory."""


@dataclass(frozen=True, slots=True)
class Room:
    """``free_bytes`` are available; ``limit`` names what limits them, as the end of "free …"."""

    free_bytes: int
    limit: str


def rooms(root: Path = Path("/")) -> Iterator[Room]:
    """Yield the memory free under each limit; nothing where the system reports no limit. ``root`` has ``proc`` and ``sys``."""
    available = _fields(root / "proc/meminfo").get("MemAvailable")
    if available is not None:
        yield Room(available * 1024, "on this host (MemAvailable in /proc/meminfo)")
    yield from _groups(root)
    status = _fields(root / "proc/self/status")
    for number, field, name in _LIMITS:
        most = resource.getrlimit(number)[0]
        if most != resource.RLIM_INFINITY:
            yield Room(max(most - status.get(field, 0) * 1024, 0), f"of this process's limit of {gib(most)} ({name})")


def free_bytes() -> int | None:
    """Return the memory free under the tightest limit, or None where the system reports no limit."""
    return min((room.free_bytes for room in rooms()), default=None)


def require_memory(num_bytes: int, what: str, *, hint: str, root: Path = Path("/")) -> None:
    """Refuse an allocation that cannot fit. ``what`` is the beginning of a sentence: what needs the bytes.

    Raises:
        LoadError: says what is needed, what is free, and under which limit.
    """
    least = min(rooms(root), key=lambda room: room.free_bytes, default=None)
    if least is not None and num_bytes > least.free_bytes:
        raise LoadError(
            f"{what} {gib(num_bytes)} of host memory, and {gib(least.free_bytes)} are free {least.limit}",
            hint=f"{hint}; nothing was read",
        )


@contextmanager
def no_memory_is_a_load_error() -> Iterator[None]:
    """Raise a `LoadError` where host memory runs out in this block, or in a function that this decorates."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LoadError(
            f"host memory ran out while loading: {str(error).partition(chr(10))[0] or type(error).__name__}",
            hint="free memory, raise the limit, or divide the model over more ranks; nothing was loaded",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation on the host failed, some of which only the message shows.

    >>> is_out_of_memory(OSError(12, "Cannot allocate memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):
        return any(words in str(error).lower() for words in _WORDS)
    return isinstance(error, MemoryError)


def _groups(root: Path) -> Iterator[Room]:
    """Yield the memory free in the process's control group and its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            files = ("memory.max", "memory.current", "")
            top = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # Inside a container the path may be the host's and not exist; the top is then the container's group.
        for folder in dict.fromkeys((group, *group.parents)):
            most, used = _number(top / folder / files[0]), _number(top / folder / files[1])
            if most is not None and used is not None:
                stat = _fields(top / folder / "memory.stat")
                cached = sum(stat.get(f"{files[2]}{name}_file", 0) for name in ("active", "inactive"))
                name = f"control group /{folder}" if folder.parts else "control group"
                yield Room(max(most - used + cached, 0), f"of the {gib(most)} of its {name} ({files[0]})")


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None for ``max``, and where there is no such file."""
    try:
        return int(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number on each line, unconverted."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    words = (line.replace(":", " ").split() for line in lines)
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}
