"""Resolves MODEL, a folder or a hub id, with huggingface_hub's client, cache and environment variables.

A model in the cache is used from there. Missing files are downloaded only on request, and only those that a model needs.
An incomplete copy is never used as a model.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loadmaster.arguments import expect, expect_function
from loadmaster.checkpoint.hub_errors import HubError, hub_errors
from loadmaster.checkpoint.index import INDEX_NAME
from loadmaster.checkpoint.listing import list_shards
from loadmaster.checkpoint.lookalike import ADAPTER, CONFIG, PUBLISHERS, instead, printable, recognise, some
from loadmaster.checkpoint.repository import COMMIT, HubFile, Repository
from loadmaster.checkpoint.source import LocalFolder
from loadmaster.errors import CheckpointError

Say = Callable[[str], None]
"""Takes one line about what happens to a model on the hub."""


def resolve_model(
    model: str,
    revision: str | None = None,
    *,
    cache_dir: str | None = None,
    download: bool = False,
    on_notice: Say | None = None,
) -> Path:
    """Return the folder (or file) of a model; for a hub id, the folder of its commit in the cache.

    Missing files are downloaded only with ``download``, and only the files that a model needs: the shards that the index
    names, index, configs, tokenizer and chat templates. ``cache_dir`` replaces the default cache folder of the hub's client.
    ``on_notice`` receives a line about what is downloaded, or that the hub could not be reached.

    Raises:
        ArgumentError: an argument has the wrong type.
        CheckpointError: there is no such folder, and no such model on the hub, or the hub cannot be reached; or the cache
            does not have the whole model, and ``download`` was not given: says how many files and bytes are missing.
    """
    expect("model", model, str, "a folder, or a hub id such as owner/name")
    for name, value in (("revision", revision), ("cache_dir", cache_dir)):
        expect(name, value, (str, type(None)), "text")
    expect("download", download, bool, "True or False")
    expect_function("on_notice", on_notice, "a line")
    say = on_notice or (lambda line: None)
    path = _on_disk(model)
    if path is None:
        return _from_hub(model, revision, cache_dir, download, say)
    _ignore_revision(model, revision, say)
    return path


def _on_disk(model: str) -> Path | None:
    """Return a model's path; None where it can only be a hub id.

    Raises:
        CheckpointError: it is neither, or cannot be read.
    """
    if "://" in model:
        url = printable(model.partition("?")[0], 4096)
        hint = "`loadmaster pull` downloads it to a folder: give the folder; `inspect` and `plan` take the URL"
        raise CheckpointError(f"{url} is a URL, and its files have to be on disk", hint=hint)
    name = printable(model, 4096)
    hint = "MODEL is a folder, or a hub id such as owner/name"
    try:
        path = Path(model).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise CheckpointError(
                f"{name} is a link to {printable(str(path.readlink()))}, which does not exist", hint=hint
            ) from None
        if model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise CheckpointError(f"{name} does not exist", hint=hint) from None
        return None
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{name} cannot be read: {reason}", hint=hint) from error
    return path


def find_model(
    model: str, revision: str | None = None, *, cache_dir: str | None = None, on_notice: Say | None = None
) -> Path | Repository:
    """Return the folder (or file) of a model that is on disk or complete in the cache, else its repository on the hub.

    Nothing is downloaded.

    Raises:
        CheckpointError: as `resolve_model` raises it, except that a model may be missing in the cache.
    """
    say = on_notice or (lambda line: None)
    path = _on_disk(model)
    if path is not None:
        _ignore_revision(model, revision, say)
        return path
    found = _on_hub(model, revision, cache_dir, say)
    if isinstance(found, Path) or not found.absent(found.planned):
        return found if isinstance(found, Path) else found.snapshot
    return found if found.to_download(found.planned) else _downloaded(found, False, revision, cache_dir, say)


def _ignore_revision(model: str, revision: str | None, say: Say) -> None:
    if revision is not None:
        say(f"--revision {revision} is ignored: {model} is on disk, and only a model from the hub has revisions")


def _from_hub(model: str, revision: str | None, cache_dir: str | None, download: bool, say: Say) -> Path:
    repository = _on_hub(model, revision, cache_dir, say)
    if isinstance(repository, Path):
        return repository
    if not repository.absent(repository.needed if download else repository.planned):
        return repository.snapshot
    missing = repository.to_download(repository.needed)
    if not download and repository.to_download(repository.planned):
        in_part = len(missing) < len(repository.needed)
        where = "is only partly in the cache" if in_part else "is not in the cache"
        up_to = "" if repository.is_exact else "up to "
        raise CheckpointError(
            f"{model} {where}: {up_to}{repository.sizes(missing)} to download (commit {repository.commit})",
            hint=f"add --download (in Python: download=True) to download them to {repository.storage.parent}",
        )
    return _downloaded(repository, download, revision, cache_dir, say)


def _on_hub(model: str, revision: str | None, cache_dir: str | None, say: Say) -> Path | Repository:
    """Return a model's repository; where the hub cannot be reached, the folder of its commit in the cache."""
    try:
        with hub_errors(revision):
            repository = _list_repository(model, revision, cache_dir)
    except HubError as error:
        return _from_cache(model, revision, cache_dir, error, say)
    _refuse_lookalike(repository)
    return repository


def _downloaded(repository: Repository, whole: bool, revision: str | None, cache_dir: str | None, say: Say) -> Path:
    try:
        with hub_errors(revision):
            return _download(repository, whole, revision, cache_dir, say)
    except HubError as error:
        raise CheckpointError(
            f"could not download {repository.name} from the hub: {error.message}",
            hint=error.hint or "finished files are kept: run the same command again to continue",
        ) from error.__cause__


def _list_repository(model: str, revision: str | None, cache_dir: str | None) -> Repository:
    """Ask the hub for the commit and the files of a revision; one request.

    It is that of ``HfApi().model_info(…, files_metadata=True)``, whose module takes longer to import than a request takes.
    Source: https://huggingface.co/docs/hub/api
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, though not in __all__
        build_hf_headers,
        get_session,
        hf_raise_for_status,
        validate_repo_id,
    )

    validate_repo_id(model)
    at = f"/revision/{quote(revision, safe='')}" if revision is not None else ""
    answer = get_session().get(
        f"{constants.ENDPOINT}/api/models/{model}{at}",
        params={"blobs": True},
        headers=build_hf_headers(library_name="loadmaster"),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    hf_raise_for_status(answer)
    info = answer.json()
    commit, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise ValueError("it names no commit, or no files")
    return Repository(model, commit, dict(map(_listed, siblings)), _storage(model, cache_dir))


def _listed(sibling: Any) -> tuple[str, HubFile]:
    """Return a file of the hub's answer.

    Raises:
        ValueError: it is not one.
    """
    try:
        name, size = sibling["rfilename"], sibling.get("size")
        etag = (sibling.get("lfs") or {}).get("sha256") or sibling.get("blobId")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("a file has no name") from error
    if not isinstance(name, str) or not isinstance(size, int | None) or not isinstance(etag, str | None):
        raise ValueError("a file's name, size or hash is of another kind")
    return name, HubFile(size, etag)


def _storage(model: str, cache_dir: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=model, repo_type="model")


def _refuse_lookalike(repository: Repository) -> None:
    """Refuse a repository that is not a model before anything is downloaded."""
    names = [n for n in repository.files if "/" not in n and not n.startswith(".")]
    has_config = CONFIG in names or (PUBLISHERS in names and bool(repository.weights))
    lookalike = recognise(names) if not has_config or ADAPTER in names else None
    only_adapters = all(n.startswith("adapter") for n in repository.weights)
    if lookalike is not None and (not has_config or only_adapters):
        raise CheckpointError(f"{repository.name} is {lookalike.what}", hint=lookalike.remedy)
    if not repository.weights:
        raise CheckpointError(f"{repository.name} has no .safetensors file in its top folder", hint=instead(names))


def _download(repository: Repository, whole: bool, revision: str | None, cache_dir: str | None, say: Say) -> Path:
    """Download the needed files that the cache does not have; the index first, since it names the shards.

    Not ``whole``: only link the files that a plan reads into the snapshot; the cache has them from another commit.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    if INDEX_NAME in repository.files and repository.absent((INDEX_NAME,)):
        hf_hub_download(repository.name, INDEX_NAME, revision=repository.commit, cache_dir=cache_dir)
        repository = replace(repository)  # the new value reads the index
    needed = repository.needed if whole else repository.planned
    if missing := repository.to_download(needed):
        say(f"downloading {repository.sizes(missing)} of {repository.name}, commit {repository.commit}")
    names = [glob.escape(n) for n in needed]
    folder = Path(snapshot_download(repository.name, revision=revision, cache_dir=cache_dir, allow_patterns=names))
    if folder.name != repository.commit:
        raise OSError(f"the revision moved from commit {repository.commit} to {folder.name} during the download")
    if absent := repository.absent(needed):
        raise OSError(f"{some(absent)} did not arrive completely")
    return folder


def _from_cache(model: str, revision: str | None, cache_dir: str | None, error: HubError, say: Say) -> Path:
    """Return the folder of a revision in the cache, where the hub cannot be reached; it must be complete."""
    folder = None if error.is_final else _cached(model, revision, cache_dir)
    if folder is None:
        raise CheckpointError(f"{model} is not in the cache, and {error.message}", hint=error.hint) from error.__cause__
    if missing := _missing(folder):
        message = f"{model} is only partly in the cache ({some(missing)} missing in {folder}), and {error.message}"
        raise CheckpointError(message, hint=error.hint) from error.__cause__
    if not error.is_expected:
        say(f"{error.message}; using commit {folder.name} of {model} from the cache")
    return folder


def _cached(model: str, revision: str | None, cache_dir: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            model, revision=revision, cache_dir=cache_dir, local_files_only=True, allow_patterns=[]
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _missing(folder: Path) -> tuple[str, ...]:
    """Return what is missing in a snapshot: the config, and shards that its index or the shards' numbers name."""
    config = () if any((folder / name).is_file() for name in (CONFIG, PUBLISHERS)) else (CONFIG,)
    source = LocalFolder(folder)
    index, _ = source.index() if (folder / INDEX_NAME).is_file() else (None, ())
    try:
        listing = list_shards(source, source.names(), index)
    except CheckpointError:
        return (*config, "all shards")
    gone = (n for n in listing.shards if not (folder / n).exists())  # links to blobs that were removed
    return (*config, *listing.missing, *gone)
