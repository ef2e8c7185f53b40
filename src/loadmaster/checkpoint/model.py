"""Opens MODEL wherever it is: a folder, one file, the hub, a URL. What is not on disk is not downloaded: only read in part.

Where a model is on disk or complete in the hub's cache, it is opened there.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from loadmaster.arguments import expect
from loadmaster.checkpoint.folder import Checkpoint, open_checkpoint, open_source
from loadmaster.checkpoint.hub import Say, find_model
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.files import HeaderProgress
from loadmaster.checkpoint.repository import Repository
from loadmaster.errors import CheckpointError


def open_model(
    model: str,
    revision: str | None = None,
    *,
    cache_dir: str | None = None,
    on_notice: Say | None = None,
    on_progress: HeaderProgress | None = None,
) -> Checkpoint:
    """Open a model: a folder, a ``.safetensors`` file, a hub id, or an ``https://`` URL of a folder or a file.

    Of a model that is not on disk, only config, index and the shards' headers are read, by range requests. ``revision`` is a
    branch, tag or commit on the hub, ``cache_dir`` replaces the default cache folder of the hub's client. ``on_notice`` receives
    lines about what was read, ``on_progress`` the number of headers that were read and of all.

    Raises:
        ArgumentError: an argument has the wrong type.
        CheckpointError: there is no such model, or it cannot be reached. All other defects are in the checkpoint's findings.
    """
    expect("model", model, str, "a folder, a hub id such as owner/name, or a URL")
    for name, value in (("revision", revision), ("cache_dir", cache_dir)):
        expect(name, value, (str, type(None)), "text")
    say, progress = on_notice or (lambda line: None), on_progress or (lambda done, total: None)
    if "://" in model:
        if revision is not None:
            say(f"--revision {revision} is ignored: only a model from the hub has revisions")
        return _open_url(model, say, progress)
    found = find_model(model, revision, cache_dir=cache_dir, on_notice=say)
    if isinstance(found, Repository):
        return _open_repository(found, revision, cache_dir, say, progress)
    return open_checkpoint(found, _cached_origin(model, revision, found))


def _cached_origin(model: str, revision: str | None, found: Path) -> Origin | None:
    """Return the origin of a model in the hub's cache, whose folder is named after its commit; None for any other folder."""
    if found.parent.name != "snapshots" or Path(model).expanduser() == found:
        return None
    return Origin("hub", model, revision, found.name)


def _open_repository(
    repository: Repository, revision: str | None, cache_dir: str | None, say: Say, progress: HeaderProgress
) -> Checkpoint:
    from loadmaster.checkpoint.remote.cache import HeaderCache, default_folder
    from loadmaster.checkpoint.remote.folder import RemoteFolder
    from loadmaster.checkpoint.remote.http import Http
    from loadmaster.checkpoint.remote.hub import HubFiles

    with Http() as http:
        files = HubFiles(repository, revision, http, cache_dir)
        return open_source(RemoteFolder(files, cache=HeaderCache(default_folder()), progress=progress, say=say))


def _open_url(url: str, say: Say, progress: HeaderProgress) -> Checkpoint:
    shown, scheme = printable(url.partition("?")[0], 1000), urlsplit(url).scheme.lower()
    if scheme not in ("https", "http"):
        raise CheckpointError(
            f"{shown}: {scheme}:// is not supported",
            hint="MODEL is a folder, a hub id such as owner/name, or https://…",
        )
    from loadmaster.checkpoint.remote.folder import RemoteFolder
    from loadmaster.checkpoint.remote.http import Http
    from loadmaster.checkpoint.remote.site import SiteFiles

    _refuse_page(url)
    with Http() as http:
        files = SiteFiles(url, http)
        return open_source(RemoteFolder(files, cache=None, progress=progress, say=say), files.only)


def _refuse_page(url: str) -> None:
    """Refuse the address of a model's page on the hub, which is not a folder of files.

    Raises:
        CheckpointError: says which hub id to give.
    """
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    if parts.hostname in ("huggingface.co", "hf.co") and len(path) >= 2 and "resolve" not in path:
        name = printable("/".join(path[:2]))
        at = f" --revision {printable('/'.join(path[3:]))}" if len(path) > 3 and path[2] in ("tree", "commit") else ""
        raise CheckpointError(f"{printable(url)} is a page of the hub", hint=f"give its hub id: {name}{at}")
