"""A verification goes on where it was interrupted, and reads again what has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadmaster.checkpoint import LocalStore, open_checkpoint
from loadmaster.errors import LoadError, UsageError
from loadmaster.payload import Journal, Verification, survey_payload, verify_payload
from tests.conftest import Tiny
from tests.payload.inject import copy, put

NORM = "model.norm.weight"
Reads = dict[str, int]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """File name → bytes read of its payload."""
    counts: Reads = {}
    readinto = LocalStore.readinto

    def counted(self: LocalStore, name: str, start: int, buffers: Any) -> None:
        counts[name] = counts.get(name, 0) + sum(b.nbytes for b in buffers)
        readinto(self, name, start, buffers)

    monkeypatch.setattr(LocalStore, "readinto", counted)
    monkeypatch.setattr(LocalStore, "read_range", lambda s, n, a, length: (s._folder / n).read_bytes()[a : a + length])
    yield counts


def verify(path: Path, state: Path, on_progress: Callable[[int], None] | None = None, **options: Any) -> Verification:
    with Journal(state) as journal:
        survey = survey_payload(open_checkpoint(path), journal=journal, **options)
        return verify_payload(survey, journal=journal, num_threads=1, on_progress=on_progress)


def sizes(path: Path) -> Reads:
    return {f.name: f.stat().st_size for f in path.glob("*.safetensors")}


def test_what_was_read_is_not_read_again_and_its_findings_remain(tiny_copy: Tiny, tmp_path: Path, reads: Reads) -> None:
    path, state = tiny_copy("glm-5.1-fp8"), tmp_path / "state"
    put(path, NORM, (0,), np.nan)
    first = verify(path, state)
    assert reads == sizes(path)
    reads.clear()
    second = verify(path, state)
    assert reads == {}
    assert (second.read_bytes, second.num_resumed, second.findings) == (0, 4, first.findings)
    assert [f.tensor for f in second.findings] == [NORM]


def test_copies_are_compared_from_what_the_state_file_has(tiny_copy: Tiny, tmp_path: Path) -> None:
    path = tiny_copy("deepseek-v3")
    put(path, "model.layers.6.embed_tokens.weight", (2, 3), 9.0)
    first = verify(path, tmp_path / "state")
    assert verify(path, tmp_path / "state").findings == first.findings
    assert {f.code for f in first.findings} == {"copy-differs"}


def test_an_interrupted_run_goes_on_with_the_files_that_are_left(tiny: Tiny, tmp_path: Path, reads: Reads) -> None:
    path, state = tiny("glm-5.1-fp8"), tmp_path / "state"
    done = 0

    def interrupt(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if done > sum(sizes(path).values()) / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(path, state, interrupt)
    finished = len(state.read_bytes().splitlines()) - 1
    assert 0 < finished < 4
    reads.clear()
    result = verify(path, state)
    assert (result.num_resumed, len(reads)) == (finished, 4 - finished)


def test_only_a_file_that_changed_is_read_again(tiny_copy: Tiny, tmp_path: Path, reads: Reads) -> None:
    path, state = tiny_copy("glm-5.1-fp8"), tmp_path / "state"
    verify(path, state)
    put(path, NORM, (0,), np.inf)
    reads.clear()
    result = verify(path, state)
    assert len(reads) == 1
    assert [f.tensor for f in result.findings] == [NORM]


def test_a_file_without_a_hash_in_the_state_is_read_again_where_one_is_recorded(
    tiny_copy: Tiny, tmp_path: Path, reads: Reads
) -> None:
    path, state = tiny_copy("smollm2"), tmp_path / "state"
    verify(path, state)
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    (path / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    assert verify(path, state, hashing=False).num_resumed == 1
    assert verify(path, state).num_resumed == 0
    reads.clear()
    (path / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    assert [f.code for f in verify(path, state).findings] == ["sha256-mismatch"]
    assert reads == {}


def test_a_config_that_asks_for_other_comparisons_has_their_file_read_again(tiny_copy: Tiny, tmp_path: Path) -> None:
    path, state = tiny_copy("glm-5.1-fp8"), tmp_path / "state"
    verify(path, state)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert verify(path, state).num_resumed == 3  # the file of the embedding and the head is read again


def test_peers_are_compared_from_what_the_state_file_has(tiny_copy: Tiny, tmp_path: Path) -> None:
    path, state = tiny_copy("qwen3-moe"), tmp_path / "state"
    copy(path, "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight")
    first = verify(path, state)
    second = verify(path, state)
    assert second.read_bytes == 0
    assert first.findings == second.findings
    assert [f.code for f in first.findings] == ["tensor-copied"]


def test_a_state_without_digests_is_read_again_where_they_are_wanted(tiny: Tiny, tmp_path: Path) -> None:
    path, state = tiny("smollm2"), tmp_path / "state"
    verify(path, state)
    assert verify(path, state, digesting=True).num_resumed == 0
    again = verify(path, state, digesting=True)
    assert (again.num_resumed, len(again.digests)) == (1, len(open_checkpoint(path).table))


def test_a_line_that_was_cut_off_counts_for_nothing_and_the_next_is_whole(tiny: Tiny, tmp_path: Path) -> None:
    path, state = tiny("glm-5.1-fp8"), tmp_path / "state"
    verify(path, state)
    state.write_bytes(state.read_bytes()[:-20])
    assert verify(path, state).num_resumed == 3
    assert verify(path, state).num_resumed == 4


def test_a_file_that_is_no_state_file_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("chapter one\n")
    with pytest.raises(UsageError, match="not a state file"):
        verify(tiny("smollm2"), precious)
    assert precious.read_text() == "chapter one\n"


def test_a_failure_leaves_what_was_finished_in_the_state(tiny_copy: Tiny, tmp_path: Path) -> None:
    path, state = tiny_copy("glm-5.1-fp8"), tmp_path / "state"
    with Journal(state) as journal:
        survey = survey_payload(open_checkpoint(path), journal=journal)
        last = max(sizes(path))
        (path / last).write_bytes(b"")
        with pytest.raises(LoadError, match=last):
            verify_payload(survey, journal=journal, num_threads=1)
    assert len(state.read_bytes().splitlines()) == 1 + 3
