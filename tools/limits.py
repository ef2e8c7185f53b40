"""The page of limits: `loadmaster.limits` as tables."""

from __future__ import annotations

from collections.abc import Iterator

from loadmaster.limits import LIMITS, OF_KEYS
from tools.pages import table


def parts() -> Iterator[str]:
    """Yield the page's parts."""
    yield (
        "A checkpoint comes from strangers. A few bytes of a config, or a file of zeros, could ask for more time and memory "
        "than the machine has, so the files and the config have limits. No published model comes near, except Kimi-K3 with its "
        "tensors. What is beyond is refused with a finding (`limit-exceeded`, or `config-invalid` for what the config "
        "describes), never cut short."
    )
    yield (
        "Within the limits `inspect` and `plan` take up to 10 seconds of computing and 1 GiB. Only regular files are read, "
        "and links to them: a folder, a FIFO, a device or a socket under the name of a shard, of the index or of the config "
        "is an error. Names of files must be UTF-8 without control characters. `python -m tools.hostile` tries all of it."
    )
    for title, limits in LIMITS.items():
        yield f"## {title}"
        rows = ((f"{limit.value:,} {limit.of}", limit.known, limit.reason) for limit in limits)
        yield table(("at most", "the largest published", "what the limit prevents"), rows)
    keys = ", ".join(f"`{key}`" for key in OF_KEYS)
    yield f"Layers, MTP layers and experts are the config's {keys}; the limit of a size is that of every other key."
    yield (
        "Regular expressions of a config (compressed-tensors' `re:…`) are matched by RE2, in time that grows with the name "
        "alone; look-around and back-references, which it does not have, are refused by name."
    )
