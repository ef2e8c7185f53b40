"""What the hub's client raises, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loadmaster.checkpoint.lookalike import printable


class HubError(Exception):
    """The hub could not be reached, or refused. ``message`` continues a sentence after "… and".

    ``is_final``: the cache is not tried instead. ``is_expected``: the user asked to use the cache.
    """

    def __init__(self, message: str, hint: str | None, *, is_final: bool = False, is_expected: bool = False) -> None:
        super().__init__(message)
        self.message, self.hint, self.is_final, self.is_expected = message, hint, is_final, is_expected


@contextmanager
def hub_errors(revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's client raises into a `HubError`."""
    from huggingface_hub import errors

    # the base error of the HTTP client, which differs between versions of huggingface_hub
    transport: Any = errors.HfHubHTTPError.__mro__[1]
    try:
        yield
    except (transport, OSError, ValueError, RuntimeError, errors.EntryNotFoundError) as error:
        raise explained(error, revision) from error


def explained(error: Exception, revision: str | None) -> HubError:
    """Return what an error of the hub's client means. ``revision`` is the one that was asked for."""
    from huggingface_hub import constants, errors

    hub = f"the hub ({constants.ENDPOINT})"
    token = "check the name; a private model needs a valid token: `hf auth login`, or HF_TOKEN"
    text = printable((str(error).strip() or type(error).__name__).splitlines()[0])
    match error:
        case errors.OfflineModeIsEnabled():
            hint = "unset HF_HUB_OFFLINE to use the hub"
            return HubError("HF_HUB_OFFLINE is set", hint, is_expected=True)
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return explained(error.__cause__, revision)
        case errors.HFValidationError():
            hint = "MODEL is a folder, or a hub id such as owner/name"
            return HubError(f"it is not a hub id either: {text}", hint, is_final=True)
        case errors.GatedRepoError():
            hint = "request access on its page, then give a token: `hf auth login`, or HF_TOKEN"
            return HubError(f"access to it is gated on {hub}", hint)
        case errors.RevisionNotFoundError():
            hint = "--revision is a branch, a tag or a commit"
            return HubError(f"{hub} has no revision {revision or 'main'} of it", hint, is_final=True)
        case errors.DisabledRepoError():
            return HubError(f"access to it is disabled on {hub}", None)
        case errors.HfHubHTTPError(response=answer):
            status = answer.status_code
            if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
                return HubError(f"{hub} has no such model, or it is private (HTTP status {status})", token)
            return HubError(f"{hub} answered with HTTP status {status}", "try again later")
        case errors.FileMetadataError() | ValueError():
            hint = "check HF_ENDPOINT, and that no proxy answers instead of the hub"
            return HubError(f"the answer of {hub} is not valid: {text}", hint)
        case OSError(errno=int()) if error.filename is not None:
            return HubError(f"{error.filename}: {error.strerror}", "check the cache folder and its disk")
        case OSError(errno=28):
            return HubError("no space is left on the cache's disk", "free some space, or set HF_HOME to another disk")
    return HubError(f"the connection to {hub} failed: {text}", None)
