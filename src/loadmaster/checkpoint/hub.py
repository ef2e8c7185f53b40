"""Resolves MODEL, a folder or a hub id, with huggingface_hub's client, cache and environment variables.

A model in the cache is used from there. Missing files are downloaded only on request, and only those that a model needs.
An incomplete copy is never used as a model.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadmaster.arguments import expect, shown
from loadmaster.checkpoint.index import INDEX_NAME, read_index
from loadmaster.checkpoint.listing import list_shards
from loadmaster.checkpoint.lookalike import ADAPTER, CONFIG, instead, printable, recognise, some
from loadmaster.checkpoint.repository import HubFile, Repository
from loadmaster.checkpoint.source import LocalFolder
from loadmaster.errors import ArgumentError, CheckpointError

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
    if on_notice is not None and not callable(on_notice):
        raise ArgumentError(f"on_notice is {shown(on_notice)}, expected a function that takes a line")
    say = on_notice or (lambda line: None)
    path = _on_disk(model)
    if path is None:
        return _from_hub(model, revision, cache_dir, download, say)
    if revision is not None:
        say(f"--revision {revision} is ignored: {model} is on disk, and only a model from the hub has revisions")
    return path


def _on_disk(model: str) -> Path | None:
    """Return a model's path; None where it can only be a hub id.

    Raises:
        CheckpointError: it is neither, or cannot be read.
    """
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


def _from_hub(model: str, revision: str | None, cache_dir: str | None, download: bool, say: Say) -> Path:
    try:
        with _hub_errors(revision):
            repository = _list_repository(model, revision, cache_dir)
    except _HubError as error:
        return _from_cache(model, revision, cache_dir, error, say)
    _refuse_lookalike(repository)
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
    try:
        with _hub_errors(revision):
            return _download(repository, download, revision, cache_dir, say)
    except _HubError as error:
        raise CheckpointError(
            f"could not download {model} from the hub: {error.message}",
            hint=error.hint or "finished files are kept: run the same command again to continue",
        ) from error.__cause__


def _list_repository(model: str, revision: str | None, cache_dir: str | None) -> Repository:
    """Ask the hub for the commit and the files of a revision; one request."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not info.sha or info.siblings is None:
        raise ValueError("it names no commit, or no files")
    files = {s.rfilename: HubFile(s.size, s.lfs.sha256 if s.lfs else s.blob_id) for s in info.siblings}
    return Repository(model, info.sha, files, _storage(model, cache_dir))


def _storage(model: str, cache_dir: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=model, repo_type="model")


def _refuse_lookalike(repository: Repository) -> None:
    """Refuse a repository that is not a model before anything is downloaded."""
    names = [n for n in repository.files if "/" not in n and not n.startswith(".")]
    lookalike = recognise(names) if CONFIG not in names or ADAPTER in names else None
    only_adapters = all(n.startswith("adapter") for n in repository.weights)
    if lookalike is not None and (CONFIG not in names or only_adapters):
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


def _from_cache(model: str, revision: str | None, cache_dir: str | None, error: _HubError, say: Say) -> Path:
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
    config = () if (folder / CONFIG).is_file() else (CONFIG,)
    source = LocalFolder(folder)
    index, _ = read_index(source) if (folder / INDEX_NAME).is_file() else (None, ())
    try:
        listing = list_shards(source, index)
    except CheckpointError:
        return (*config, "all shards")
    gone = (n for n in listing.shards if not (folder / n).exists())  # links to blobs that were removed
    return (*config, *listing.missing, *gone)


class _HubError(Exception):
    """The hub could not be reached, or refused. ``message`` continues a sentence after "… and".

    ``is_final``: the cache is not tried instead. ``is_expected``: the user asked to use the cache.
    """

    def __init__(self, message: str, hint: str | None, *, is_final: bool = False, is_expected: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.is_final, self.is_expected = message, hint, is_final, is_expected


@contextmanager
def _hub_errors(revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's client raises into a `_HubError`."""
    from huggingface_hub import errors

    # the base error of the HTTP client, which differs between versions of huggingface_hub
    transport: Any = errors.HfHubHTTPError.__mro__[1]
    try:
        yield
    except (transport, OSError, ValueError, RuntimeError, errors.EntryNotFoundError) as error:
        raise _explained(error, revision) from error


def _explained(error: Exception, revision: str | None) -> _HubError:
    from huggingface_hub import constants, errors

    hub = f"the hub ({constants.ENDPOINT})"
    token = "check the name; a private model needs a valid token: `hf auth login`, or HF_TOKEN"
    text = printable((str(error).strip() or type(error).__name__).splitlines()[0])
    match error:
        case errors.OfflineModeIsEnabled():
            hint = "unset HF_HUB_OFFLINE to use the hub"
            return _HubError("HF_HUB_OFFLINE is set", hint, is_expected=True)
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return _explained(error.__cause__, revision)
        case errors.HFValidationError():
            hint = "MODEL is a folder, or a hub id such as owner/name"
            return _HubError(f"it is not a hub id either: {text}", hint, is_final=True)
        case errors.GatedRepoError():
            hint = "request access on its page, then give a token: `hf auth login`, or HF_TOKEN"
            return _HubError(f"access to it is gated on {hub}", hint)
        case errors.RevisionNotFoundError():
            hint = "--revision is a branch, a tag or a commit"
            return _HubError(f"{hub} has no revision {revision or 'main'} of it", hint, is_final=True)
        case errors.DisabledRepoError():
            return _HubError(f"access to it is disabled on {hub}", None)
        case errors.HfHubHTTPError(response=answer):
            status = answer.status_code
            if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
                return _HubError(f"{hub} has no such model, or it is private (HTTP status {status})", token)
            return _HubError(f"{hub} answered with HTTP status {status}", "try again later")
        case errors.FileMetadataError() | ValueError():
            hint = "check HF_ENDPOINT, and that no proxy answers instead of the hub"
            return _HubError(f"the answer of {hub} is not valid: {text}", hint)
        case OSError(errno=int()) if error.filename is not None:
            return _HubError(f"{error.filename}: {error.strerror}", "check the cache folder and its disk")
        case OSError(errno=28):
            return _HubError("no space is left on the cache's disk", "free some space, or set HF_HOME to another disk")
    return _HubError(f"the connection to {hub} failed: {text}", None)
