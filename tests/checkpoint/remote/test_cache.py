"""Kept headers: damaged entries are read again, and the oldest go."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loadmaster.checkpoint.remote.cache import HeaderCache, cache_folder


def entries(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_a_header_is_kept_under_its_key(tmp_path: Path) -> None:
    cache = HeaderCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", b"text")
    assert HeaderCache(tmp_path).get("a") == b"text"
    assert cache.get("b") is None


@pytest.mark.parametrize("damage", [b"", b"loadmaster header 1\n", b"x" * 60])
def test_a_damaged_entry_is_no_entry_and_is_removed(damage: bytes, tmp_path: Path) -> None:
    cache = HeaderCache(tmp_path)
    cache.put("a", b"text")
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage)
    assert cache.get("a") is None
    assert not entry.exists()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    cache = HeaderCache(tmp_path)
    cache.put("a", b"text")
    (entry,) = entries(tmp_path)
    whole = bytearray(entry.read_bytes())
    whole[-1] ^= 1
    entry.write_bytes(whole)
    assert cache.get("a") is None


def test_writers_of_the_same_entry_do_not_disturb_each_other(tmp_path: Path) -> None:
    caches = [HeaderCache(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda c: [c.put("a", b"text" * 1000) for _ in range(20)], caches))
    assert caches[0].get("a") == b"text" * 1000
    assert len(entries(tmp_path)) == 1


def test_the_entries_that_were_not_used_for_longest_are_removed(tmp_path: Path) -> None:
    cache = HeaderCache(tmp_path, most_bytes=3000)
    for i, key in enumerate("abcd"):
        before = set(entries(tmp_path))
        cache.put(key, b"x" * 1000)
        (new,) = set(entries(tmp_path)) - before
        os.utime(new, (i, i))
    assert cache.get("a") is not None  # used, so it is the newest
    cache.trim()
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_a_cache_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = HeaderCache(tmp_path / "file")
    cache.put("a", b"text")
    assert cache.error is not None
    assert cache.get("a") is None


def test_the_folder_is_where_caches_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("headers") == tmp_path / "loadmaster" / "headers"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("headers") == Path.home() / ".cache" / "loadmaster" / "headers"
