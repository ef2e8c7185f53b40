"""MODEL on the command line: a folder, or a hub id resolved through huggingface_hub's own cache and environment."""

from __future__ import annotations

from pathlib import Path

from loadmaster.errors import CheckpointError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
"""What of a repository a model needs."""


def resolve_model(model: str, revision: str | None = None, *, cache_dir: str | None = None) -> Path:
    """Return the folder (or file) of a model; a hub id is downloaded, or found in the cache.

    ``cache_dir`` is another folder for the cache than the hub's client has by itself.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub, or the hub cannot be reached.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model} does not exist", hint="MODEL is a folder, or a hub id such as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache_dir, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise CheckpointError(f"{model!r} is neither a folder nor a hub id: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{model} is not in the hub's cache, and the hub cannot be reached",
            hint="check the network and HF_HUB_OFFLINE, or download the model first",
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"{model} could not be had from the hub: {str(error).splitlines()[0]}",
            hint="check the name and the revision; private models need HF_TOKEN",
        ) from error
    except OSError as error:
        raise CheckpointError(f"{model} could not be had from the hub: {error}") from error
