"""Names as slices of a text: found, compared and counted as strings are, also where fingerprints collide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadmaster.checkpoint import names as module
from loadmaster.checkpoint.names import Names, distinct, rows

TEXTS = st.lists(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=40), max_size=30)


@pytest.fixture(params=["fingerprints differ", "all fingerprints are the same"])
def prints(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param.startswith("all"):
        monkeypatch.setattr(module, "_FACTORS", np.zeros_like(module._FACTORS))


@pytest.mark.usefixtures("prints")
def test_names_are_found_as_a_dict_finds_them() -> None:
    stored = [f"model.layers.{i}.{part}.weight" for i in range(12) for part in ("q", "experts.1", "experts.10")]
    wanted = [*reversed(stored), "model.layers.1", "", "model.layers.12.q.weight", "é"]
    number = {name: i for i, name in enumerate(stored)}
    assert Names.of(stored).find(wanted).tolist() == [number.get(name, -1) for name in wanted]
    assert Names.of([]).find(wanted).tolist() == [-1] * len(wanted)


@pytest.mark.usefixtures("prints")
def test_numbered_names_are_found_whatever_their_order() -> None:
    stored = [f"layers.3.experts.{i}.up.weight" for i in sorted(range(120), key=str)] + [
        "layers.3.experts.007.up.weight"
    ]
    found = Names.of(stored).find_numbered(
        [("layers.31.experts.", ".up.weight"), ("layers.3.experts.", ".up.weight")], 130
    )
    assert found[0].max() == -1
    assert [stored[i] if i >= 0 else None for i in found[1].tolist()] == [
        f"layers.3.experts.{i}.up.weight" if i < 120 else None for i in range(130)
    ]


@pytest.mark.usefixtures("prints")
def test_repeated_names_point_at_the_first_of_them() -> None:
    assert Names.of(["b", "a", "b", "c", "a", "b"]).repeated() == {2: 0, 4: 1, 5: 0}
    assert Names.of(["a", "b", "ab"]).repeated() == {}


def test_two_lists_are_matched_only_if_they_have_the_same_names_once() -> None:
    mine = Names.of(["a.0", "a.1", "a.2"])
    assert mine.matched(Names.of(["a.2", "a.0", "a.1"])).tolist() == [1, 2, 0]  # type: ignore[union-attr]
    for others in (["a.2", "a.0"], ["a.2", "a.0", "a.3"], ["a.2", "a.0", "a.0"]):
        assert mine.matched(Names.of(others)) is None
    twice = Names.of(["a", "a"])
    assert twice.matched(twice) is None


def test_a_fingerprint_alone_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FACTORS", np.zeros_like(module._FACTORS))
    assert Names.of(["a"]).matched(Names.of(["b"])) is None
    assert distinct(rows(np.frombuffer(b"ab", np.uint8), np.array([0, 1]), np.array([1, 2]))) is None


@given(TEXTS)
@example(["a\0", "", "\0"])  # zeros at the end, which rows of bytes leave out
def test_names_read_as_the_strings_they_were_made_of(strings: list[str]) -> None:
    names = Names.of(strings)
    assert list(names) == strings == names[:]
    assert [names[i] for i in range(len(strings))] == strings
    assert names.ids == {s: i for i, s in enumerate(strings)}
    assert names.find(strings).min(initial=0) >= 0


@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), max_size=20))
def test_rows_are_the_slices_with_zeros_after_them(text: bytes, slices: list[tuple[int, int]]) -> None:
    begins = np.array([min(b, len(text)) for b, _ in slices], dtype=np.int64)
    ends = np.minimum(begins + [n for _, n in slices], len(text)).astype(np.int64) if slices else begins
    matrix = rows(np.frombuffer(text, np.uint8), begins, ends)
    assert [bytes(r) for r in matrix] == [
        text[b:e].ljust(matrix.shape[1], b"\0") for b, e in zip(begins, ends, strict=True)
    ]
