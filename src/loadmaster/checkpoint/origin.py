"""Where a checkpoint came from: a folder, the hub at a commit, or a URL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

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

    @property
    def title(self) -> str:
        """Its name for a heading: of a folder, the folder's own name.

        >>> Origin("folder", "/models/glm").title, Origin("hub", "owner/name").title
        ('glm', 'owner/name')
        """
        return PurePath(self.name).name or self.name if self.kind == "folder" else self.name

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Origin:
        """Return what `as_json` wrote.

        Raises:
            ValueError, KeyError: it is something else.
        """
        if value["kind"] not in get_args(Kind):
            raise ValueError(f"the origin's kind is {value['kind']!r}")
        name, revision, commit, url = (value.get(k) for k in ("name", "revision", "commit", "url"))
        if not isinstance(name, str) or not all(isinstance(t, str | None) for t in (revision, commit, url)):
            raise ValueError("the origin's fields are not texts")
        return cls(value["kind"], name, revision, commit, url, value.get("local", True) is True)

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
