"""Puts a model on disk: only what is wanted of it, where it is not there yet. `fetch_model`.

A model on the hub of which everything is wanted is downloaded to the hub's cache, as other programs do it. Of any other, the
wanted ranges are downloaded to a partial copy (`loadmaster.checkpoint.remote.local_copy`), which later runs continue and use.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from loadmaster.arguments import expect, expect_function
from loadmaster.checkpoint.folder import Checkpoint, open_checkpoint, open_source
from loadmaster.checkpoint.hub import Say, resolve_model
from loadmaster.checkpoint.model import cached_origin, find_files
from loadmaster.checkpoint.partial import Span
from loadmaster.checkpoint.remote.cache import HeaderCache, cache_folder
from loadmaster.checkpoint.remote.files import HeaderProgress, RemoteFiles
from loadmaster.checkpoint.remote.folder import RemoteFolder
from loadmaster.checkpoint.remote.pull import PullProgress, pull_into
from loadmaster.checkpoint.source import LocalFolder

Wanted = Callable[[Checkpoint], Mapping[str, Iterable[Span]] | None]
"""Returns the ranges of each shard that are wanted of a checkpoint, by its headers; None: all of it."""


def fetch_model(
    model: str,
    revision: str | None = None,
    *,
    wanted: Wanted | None = None,
    download_dir: str | os.PathLike[str] | None = None,
    on_notice: Say | None = None,
    on_header: HeaderProgress | None = None,
    on_progress: PullProgress | None = None,
) -> Checkpoint:
    """Open a model as `open_model` does, with what is ``wanted`` of its shards on disk; what is missing is downloaded.

    ``wanted`` is called with a checkpoint that has headers only, before anything is downloaded, and returns ranges of bytes by
    shard (`loadmaster.plan.shard_ranges`), or None for everything; it is not called for a model that is on disk or complete in
    the hub's cache. What it raises is passed on. ``download_dir`` replaces the folder of downloads: the hub's cache, and for
    URLs and parts of models ``~/.cache/loadmaster/models``. If several processes fetch the same model, one downloads and the
    others wait for it. ``on_notice`` receives lines about what is done, ``on_header`` the number of headers that were read and
    of all, ``on_progress`` the bytes that were downloaded and all that will be.

    Raises:
        ArgumentError: an argument has the wrong type.
        CheckpointError: there is no such model, it cannot be reached, or it changed during the download.
        LoadError: the copy cannot be written, or the disk has too little room.
    """
    expect("model", model, str, "a folder, a hub id such as owner/name, or a URL")
    expect("revision", revision, (str, type(None)), "text")
    expect("download_dir", download_dir, (str, os.PathLike, type(None)), "the path of a folder")
    expect_function("wanted", wanted, "a checkpoint")
    expect_function("on_notice", on_notice, "a line")
    expect_function("on_header", on_header, "two numbers")
    expect_function("on_progress", on_progress, "two numbers")
    say = on_notice or (lambda line: None)
    folder = None if download_dir is None else Path(download_dir).expanduser()
    cache_dir = None if folder is None else str(folder)
    with find_files(model, revision, cache_dir=cache_dir, on_notice=say) as found:
        if isinstance(found, Path):
            return open_checkpoint(found, cached_origin(model, revision, found))
        checkpoint = _copied(
            found,
            wanted or (lambda checkpoint: None),
            folder or cache_folder("models"),
            say,
            on_header or (lambda done, total: None),
            on_progress or (lambda done, total: None),
        )
    if checkpoint is not None:
        return checkpoint
    path = resolve_model(model, revision, cache_dir=cache_dir, download=True, on_notice=say)
    return open_checkpoint(path, cached_origin(model, revision, path))


def _copied(
    files: RemoteFiles, wanted: Wanted, folder: Path, say: Say, on_header: HeaderProgress, on_progress: PullProgress
) -> Checkpoint | None:
    """Download what is wanted to a copy below ``folder``, and open it; None where it belongs into the hub's cache."""
    cache = HeaderCache(cache_folder("headers"))
    source = RemoteFolder(files, cache=cache, progress=on_header, say=say, keeps_heads=True)
    checkpoint = open_source(source, files.only)
    ranges = wanted(checkpoint)
    if ranges is None and checkpoint.origin.kind == "hub":
        return None
    copy = folder / _name(checkpoint, files)
    pull_into(
        copy,
        source,
        checkpoint,
        ranges if ranges is not None else {f.name: ((0, f.size),) for f in checkpoint.files},
        option="--download-dir",
        say=say,
        on_progress=on_progress,
        names_whole=ranges is None,
    )
    return open_source(LocalFolder(copy), files.only)


def _name(checkpoint: Checkpoint, files: RemoteFiles) -> str:
    """Return the name of a copy's folder: another one if anything of the shards changes at the origin."""
    origin = checkpoint.origin
    name = origin.name.rstrip("/")
    content = [origin.kind, name, origin.commit, checkpoint.digest]
    content += [part for f in checkpoint.files for part in (f.name, files.etag(f.name))]
    readable = re.sub(r"[^\w.]+", "-", name.partition("://")[2] or name, flags=re.ASCII).strip("-.")[-80:]
    return f"{readable}-{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"
