"""A repository on the hub whose shards are not downloaded: small files through the cache of the hub's client, ranges of shards
by their URL.

The repository is listed, at a commit, before this is made (`loadmaster.checkpoint.hub`), so every request names the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from loadmaster.checkpoint.config import config_files
from loadmaster.checkpoint.hub_errors import HubError, hub_errors
from loadmaster.checkpoint.index import INDEX_NAME, IndexRead, read_index
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.regular import read_regular
from loadmaster.checkpoint.remote.files import ChangedFileError, MissingFileError, Part, RemoteFile
from loadmaster.checkpoint.remote.http import Answer, Http, StatusError
from loadmaster.checkpoint.repository import Repository
from loadmaster.errors import CheckpointError
from loadmaster.limits import Limit

_EXPIRED = (401, 403, 404, 410)
"""Statuses of a redirect's target, whose signature is valid for a while only."""


class HubFiles:
    """The files of a repository that a plan needs; `RemoteFiles`."""

    def __init__(self, repository: Repository, revision: str | None, http: Http, cache_dir: str | None = None) -> None:
        self.only: str | None = None
        self._repository = repository
        self._revision = revision
        self._http = http
        self._cache_dir = cache_dir
        self._targets: dict[str, str] = {}  # where the hub redirects to, by file

    @property
    def origin(self) -> Origin:
        """The model, at its commit."""
        from huggingface_hub import constants

        url = f"{constants.ENDPOINT}/{self._repository.name}/tree/{self._repository.commit}"
        name, commit = self._repository.name, self._repository.commit
        return Origin("hub", name, self._revision, commit, url, is_local=False)

    @property
    def path(self) -> Path:
        """The commit's folder in the cache."""
        return self._repository.snapshot

    def listing(self) -> Mapping[str, RemoteFile]:
        """Return the files that a model needs; for this the index is downloaded, with the configs, to the cache."""
        files = self._repository.files
        small = [*config_files(files), *((INDEX_NAME,) if INDEX_NAME in files else ())]
        had_index = not self._repository.absent((INDEX_NAME,)) if INDEX_NAME in small else True
        with ThreadPoolExecutor(len(small) or 1) as pool:
            list(pool.map(self._cached, small))
        if not had_index:
            self._repository = replace(self._repository)  # the new value reads the index
        files = self._repository.files
        return {n: RemoteFile(files[n].size, files[n].etag) for n in self._repository.needed}

    def index(self) -> IndexRead:
        """Return the index, as the listing read it to find the shards."""
        return self._repository.index or read_index(self)

    def read(self, name: str, limit: Limit) -> bytes:
        """Return the content of a small file, from the cache once it is there."""
        return read_regular(self._cached(name), limit)

    def _cached(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        r = self._repository
        file = r.snapshot / name
        if not r.absent((name,)):
            return file
        return Path(
            self._explained(name, partial(hf_hub_download, r.name, name, revision=r.commit, cache_dir=self._cache_dir))
        )

    def part(self, name: str, start: int, length: int) -> Part:
        """Return bytes of a shard. The hub's redirect is followed once per file, and then used for its other parts."""
        file = self._repository.files[name]
        answer = self._again(name, start, length) or self._first(name, start, length)
        linked = answer.header("x-linked-etag")
        if linked is not None and file.etag is not None and linked.strip('"') != file.etag:
            raise ChangedFileError("the hub sends another file than it listed")
        return Part(answer.data, answer.size, file.etag)  # a commit's files do not change

    def _again(self, name: str, start: int, length: int) -> Answer | None:
        if (target := self._targets.get(name)) is None:
            return None
        try:
            return self._http.read_range(target, start, length)
        except StatusError as error:
            if error.status not in _EXPIRED:
                raise self._refused(name, error) from error
            return None

    def _first(self, name: str, start: int, length: int) -> Answer:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._repository.name, name, revision=self._repository.commit)
        try:
            answer = self._http.read_range(url, start, length, self._secrets)
        except StatusError as error:
            if error.status in (404, 410):
                raise MissingFileError from error
            raise self._refused(name, error) from error
        if answer.url != url:
            self._targets[name] = answer.url
        return answer

    @cached_property
    def _secrets(self) -> Mapping[str, str]:
        """The user's token, if there is one: it is sent to the hub only."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented

        return {k: v for k, v in build_hf_headers().items() if k.lower() == "authorization"}

    def _refused(self, name: str, error: StatusError) -> CheckpointError:
        token = "request access on its page, then give a token: `hf auth login`, or HF_TOKEN"
        hint = token if error.status in (401, 403) else "try again later"
        return CheckpointError(
            f"could not read {name} of {self._repository.name} from the hub: HTTP status {error.status}", hint=hint
        )

    def _explained(self, name: str, download: Callable[[], str]) -> str:
        try:
            with hub_errors(self._revision):
                return download()
        except HubError as error:
            raise CheckpointError(
                f"could not read {name} of {self._repository.name} from the hub: {error.message}", hint=error.hint
            ) from error.__cause__

    def running(self) -> Sequence[str]:
        """Return those files of the repository that running needs."""
        return [n for n in self._repository.needed if n not in self._repository.planned]

    def etag(self, name: str) -> str | None:
        """Return the SHA-256 of a shard, as the hub states it."""
        return self._repository.files[name].etag

    def cache_key(self, name: str, size: int, etag: str | None) -> str | None:
        """Return the name of the file's blob, which is a hash of its content."""
        return None if etag is None else f"hub {etag} {size}"
