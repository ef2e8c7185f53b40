"""The hub's stand-in, and a process (or this one) that takes it for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.standin import StandIn


@pytest.fixture
def hub() -> Iterator[StandIn]:
    """A stand-in for the hub, with nothing on it."""
    made = StandIn()
    server = made.start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the hub's client in this process asks the stand-in, and retries without waiting."""
    from huggingface_hub import constants, file_download

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    return folder
