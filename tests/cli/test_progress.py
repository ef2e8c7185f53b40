"""Progress where there is no terminal."""

from __future__ import annotations

import pytest

from loadmaster.cli import progress
from loadmaster.cli.progress import DownloadProgress


def test_without_a_terminal_a_long_download_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    said: list[str] = []
    with DownloadProgress("downloading", said.append) as downloaded:
        for second in range(100):
            now = float(second)
            downloaded(second * 2**30, 100 * 2**30)
    assert said == [f"downloading: {n}.00 GiB of 100.00 GiB" for n in (30, 60, 90)]


def test_an_interrupted_download_says_how_to_continue() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), DownloadProgress("downloading", said.append) as downloaded:
        downloaded(1, 2)
        raise KeyboardInterrupt
    assert said == ["interrupted: run the same command to continue"]
