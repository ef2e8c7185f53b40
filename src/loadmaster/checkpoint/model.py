"""Opens MODEL wherever it is: a folder, one file, the hub, a URL. What is not on disk is not downloaded: only read in part.

Where a model is on disk or complete in the hub's cache, it is opened there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from loadmaster.arguments import expect, expect_function
from loadmaster.checkpoint.folder import Checkpoint, open_checkpoint, open_source
from loadmaster.checkpoint.hub import Say, find_model
from loadmaster.checkpoint.lookalike import printable
from loadmaster.checkpoint.origin import Origin
from loadmaster.checkpoint.remote.files import HeaderProgress, RemoteFiles
from loadmaster.errors import CheckpointError


def open_model(
    model: str,
    revision: str | None = None,
    *,
    cache_dir: str | None = None,
    on_notice: Say | None = None,
    on_progress: HeaderProgress | None = None,
) -> Checkpoint:
    """Open a model: a folder, a ``.safetensors`` file, a hub id, or the URL of a folder or a file (``https://``, ``s3://``, ``gs://``).

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
    expect_function("on_notice", on_notice, "a line")
    expect_function("on_progress", on_progress, "two numbers")
    say, progress = on_notice or (lambda line: None), on_progress or (lambda done, total: None)
    with find_files(model, revision, cache_dir=cache_dir, on_notice=say) as found:
        if isinstance(found, Path):
            return open_checkpoint(found, cached_origin(model, revision, found))
        return open_remote(found, say, progress)


def open_remote(files: RemoteFiles, say: Say, progress: HeaderProgress) -> Checkpoint:
    """Open the checkpoint of a remote place from its headers; see `open_model`."""
    from loadmaster.checkpoint.remote.cache import HeaderCache, cache_folder
    from loadmaster.checkpoint.remote.folder import RemoteFolder

    source = RemoteFolder(files, cache=HeaderCache(cache_folder("headers")), progress=progress, say=say)
    return open_source(source, files.only)


@contextmanager
def find_files(
    model: str, revision: str | None = None, *, cache_dir: str | None = None, on_notice: Say | None = None
) -> Iterator[Path | RemoteFiles]:
    """Find a model: its path where it is on disk or complete in the hub's cache, else its files there, until the block's end.

    Raises:
        CheckpointError: there is no such model, or it cannot be reached.
    """
    say = on_notice or (lambda line: None)
    if "://" in model:
        if revision is not None:
            say(f"--revision {revision} is ignored: only a model from the hub has revisions")
        with _at_url(model) as files:
            yield files
        return
    found = find_model(model, revision, cache_dir=cache_dir, on_notice=say)
    if isinstance(found, Path):
        yield found
        return
    from loadmaster.checkpoint.remote.http import Http
    from loadmaster.checkpoint.remote.hub import HubFiles

    with Http() as http:
        yield HubFiles(found, revision, http, cache_dir)


def cached_origin(model: str, revision: str | None, found: Path) -> Origin | None:
    """Return the origin of a model in the hub's cache, whose folder is named after its commit; None for any other folder."""
    if found.parent.name != "snapshots" or Path(model).expanduser() == found:
        return None
    return Origin("hub", model, revision, found.name)


@contextmanager
def _at_url(url: str) -> Iterator[RemoteFiles]:
    shown, scheme = printable(url.partition("?")[0], 1000), urlsplit(url).scheme.lower()
    if scheme in ("s3", "gs"):
        from loadmaster.checkpoint.remote.object_store import ObjectFiles

        yield ObjectFiles(url)
        return
    if scheme not in ("https", "http"):
        raise CheckpointError(
            f"{shown}: {scheme}:// is not supported",
            hint="MODEL is a folder, a hub id such as owner/name, or a URL that begins with https://, s3:// or gs://",
        )
    _refuse_page(url)
    from loadmaster.checkpoint.remote.http import Http
    from loadmaster.checkpoint.remote.site import SiteFiles

    with Http() as http:
        yield SiteFiles(url, http)


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
