"""A model's repository on the hub: which of its files a model needs, and which of them the cache has already.

Only the listing of the repository and the cache are looked at here; the hub is asked in `loadmaster.checkpoint.hub`. The
cache has the client's own layout: ``blobs/<etag>``, and ``snapshots/<commit>/<name>``, links to them.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from loadmaster.checkpoint.config import QUANTISATION
from loadmaster.checkpoint.index import INDEX_NAME, read_index
from loadmaster.checkpoint.listing import ASIDE, NUMBERED
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.findings import gib

RUNNING = (
    "generation_config.json",
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece*.model", "tekken.json", "*.tiktoken"),
    *("chat_template.json", "*.jinja"),
)
"""Files beside the weights that a model needs to run, and a plan does not: a fixed list, since anything may lie beside."""
_WEIGHTS = (".bin", ".gguf", ".safetensors", ".pt", ".pth")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file's size in bytes (None: the hub does not tell), and the name of its blob in the cache (None likewise)."""

    size: int | None
    etag: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at a commit: its ``files`` by name, and ``storage``, the cache's folder for it."""

    name: str
    commit: str
    files: Mapping[str, HubFile]
    storage: Path

    @property
    def snapshot(self) -> Path:
        """The folder that the cache has, or would have, for the commit."""
        return self.storage / "snapshots" / self.commit

    @cached_property
    def _index(self) -> Path | None:
        """Where the cache has the index, of this commit or of another with the same one; None: nowhere."""
        file = self.files.get(INDEX_NAME)
        if file is None:
            return None
        kept = [self.snapshot / INDEX_NAME, *([self.storage / "blobs" / file.etag] if file.etag else [])]
        return next((p for p in kept if _holds(p, file.size)), None)

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The shards: those that the index names, once it is in the cache, else those that lie at the top.

        A publisher's own file and adapters are left out where there is anything else.
        """
        stored = {n for n in self.files if n.endswith(".safetensors") and "/" not in n}
        index = read_index(self._index)[0] if self._index is not None else None
        if index is not None:
            return tuple(sorted(stored.intersection(index.weight_map.values())))
        return tuple(sorted({n for n in stored if not ASIDE.fullmatch(n)} or stored))

    @property
    def is_exact(self) -> bool:
        """Whether `weights` are those that are downloaded; without the index at hand there may be fewer."""
        if INDEX_NAME not in self.files or self._index is not None:
            return True
        numbered = [NUMBERED.fullmatch(n) for n in self.weights]
        return len({m and (m[1], m[4], m[5]) for m in numbered}) == 1 and None not in numbered

    @property
    def planned(self) -> tuple[str, ...]:
        """The files that a plan reads (of the shards, the headers)."""
        return (*(n for n in (CONFIG, QUANTISATION, INDEX_NAME) if n in self.files), *self.weights)

    @property
    def needed(self) -> tuple[str, ...]:
        """The files that a model needs: what a plan reads, and what lies beside it for running."""
        beside = (n for n in self.files if "/" not in n and not n.endswith(_WEIGHTS))
        return (*self.planned, *sorted(n for n in beside if any(fnmatchcase(n, p) for p in RUNNING)))

    def absent(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``names`` that the snapshot lacks, or has at another size than the hub."""
        return tuple(n for n in names if not _holds(self.snapshot / n, self.files[n].size))

    def to_download(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``names`` that no other commit in the cache has either."""
        blobs = self.storage / "blobs"

        def is_kept(file: HubFile) -> bool:
            return file.etag is not None and _holds(blobs / file.etag, file.size)

        return tuple(n for n in self.absent(names) if not is_kept(self.files[n]))

    def sizes(self, names: tuple[str, ...]) -> str:
        """Return how many files ``names`` are, and of how many bytes.

        >>> repository = Repository("a/b", "0" * 40, {"x": HubFile(2048, None), "y": HubFile(1, None)}, Path("cache"))
        >>> repository.sizes(("x", "y")), repository.sizes(("y",))
        ('2 files of 2,049 bytes (2.0 KiB)', '1 file of 1 bytes (0.0 KiB)')
        """
        known = [size for n in names if (size := self.files[n].size) is not None]
        least = "" if len(known) == len(names) else "at least "
        plural = "" if len(names) == 1 else "s"
        return f"{len(names):,} file{plural} of {least}{sum(known):,} bytes ({gib(sum(known))})"


def _holds(path: Path, size: int | None) -> bool:
    try:
        found = path.stat().st_size
    except OSError:
        return False
    return size is None or found == size
