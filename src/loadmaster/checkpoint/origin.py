"""Where a checkpoint came from: a folder, the hub at a commit, or a URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["folder", "hub", "https", "s3", "gs"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint came from.

    ``name`` is what the user gave: a path, a hub id, or a URL (without credentials and query). ``revision`` is the branch, tag or
    commit that was asked for, ``commit`` the hub's commit that it was pinned to, ``url`` where the files are on the network;
    each is None where there is none. ``is_local`` says whether the files themselves are on disk, or only what was read of them.
    """

    kind: Kind
    name: str
    revision: str | None = None
    commit: str | None = None
    url: str | None = None
    is_local: bool = True

    def __str__(self) -> str:
        """Return it for a report.

        >>> str(Origin("hub", "owner/name", "main", "0f" * 20))
        'owner/name at commit 0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f'
        """
        return f"{self.name} at commit {self.commit}" if self.commit else self.name

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "kind": self.kind,
            "name": self.name,
            "revision": self.revision,
            "commit": self.commit,
            "url": self.url,
            "local": self.is_local,
        }
