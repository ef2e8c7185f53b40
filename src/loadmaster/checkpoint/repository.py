"""A model's repository on the hub: which of its files a model needs, and which of them are already in the cache.

This reads the repository's listing and the cache; requests to the hub are in `loadmaster.checkpoint.hub`. The cache has the
layout of the hub's client: ``blobs/<etag>``, and ``snapshots/<commit>/<name>``, links to them.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from loadmaster.checkpoint.config import config_files
from loadmaster.checkpoint.index import INDEX_NAME, IndexRead, read_index
from loadmaster.checkpoint.listing import NOT_SHARDS, NUMBERED
from loadmaster.checkpoint.source import LocalFolder
from loadmaster.findings import gib

RUNNING = (
    "generation_config.json",
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece*.model", "tekken.json", "*.tiktoken"),
    *("chat_template.json", "*.jinja"),
)
"""Files that running needs in addition to weights and config. A fixed list: a repository may hold anything."""
_WEIGHTS = (".bin", ".gguf", ".safetensors", ".pt", ".pth")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file's size in bytes, and the name of its blob in the cache; each is None where the hub does not state it."""

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
        """The commit's folder in the cache; it may not exist yet."""
        return self.storage / "snapshots" / self.commit

    @cached_property
    def _index(self) -> Path | None:
        """The index in the cache, from this commit or another with the same content; None if it is not there."""
        file = self.files.get(INDEX_NAME)
        if file is None:
            return None
        kept = [self.snapshot / INDEX_NAME, *([self.storage / "blobs" / file.etag] if file.etag else [])]
        return next((p for p in kept if _holds(p, file.size)), None)

    @cached_property
    def index(self) -> IndexRead | None:
        """The index, once it is in the cache."""
        at = self._index
        return None if at is None else read_index(LocalFolder(at.parent), at.name)

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The shards: those that the index names, once it is in the cache, else those in the top folder.

        `NOT_SHARDS` are left out, unless there is nothing else.
        """
        stored = {n for n in self.files if n.endswith(".safetensors") and "/" not in n}
        index = self.index[0] if self.index is not None else None
        if index is not None:
            return tuple(sorted(stored.intersection(index.files)))
        return tuple(sorted({n for n in stored if not NOT_SHARDS.fullmatch(n)} or stored))

    @property
    def is_exact(self) -> bool:
        """Whether exactly `weights` will be downloaded; before the index is in the cache, there may be fewer."""
        if INDEX_NAME not in self.files or self._index is not None:
            return True
        numbered = [NUMBERED.fullmatch(n) for n in self.weights]
        return len({m and (m[1], m[4], m[5]) for m in numbered}) == 1 and None not in numbered

    @property
    def planned(self) -> tuple[str, ...]:
        """The files that a plan reads (only the headers of the shards)."""
        return (*config_files(self.files), *((INDEX_NAME,) if INDEX_NAME in self.files else ()), *self.weights)

    @property
    def needed(self) -> tuple[str, ...]:
        """The files that a model needs: those that a plan reads, and `RUNNING`."""
        others = (n for n in self.files if "/" not in n and not n.endswith(_WEIGHTS))
        return (*self.planned, *sorted(n for n in others if any(fnmatchcase(n, p) for p in RUNNING)))

    def absent(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``names`` that are missing in the snapshot, or differ in size from the hub's."""
        return tuple(n for n in names if not _holds(self.snapshot / n, self.files[n].size))

    def to_download(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``names`` that are in no commit in the cache."""
        blobs = self.storage / "blobs"

        def is_kept(file: HubFile) -> bool:
            return file.etag is not None and _holds(blobs / file.etag, file.size)

        return tuple(n for n in self.absent(names) if not is_kept(self.files[n]))

    def sizes(self, names: tuple[str, ...]) -> str:
        """Return the number of files in ``names`` and their bytes, as text.

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
        stored = path.stat().st_size
    except OSError:
        return False
    return size is None or stored == size
