"""Code and documents use no phrase of tools/phrases.toml."""

from pathlib import Path

import pytest

from tools import phrases


def test_no_hard_phrases(capsys: pytest.CaptureFixture[str]) -> None:
    assert phrases.main() == 0, capsys.readouterr().out


def test_a_phrase_is_found_across_lines(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("One\nIt lasts for\never.\n", encoding="utf-8")
    [line] = phrases.hard_phrases(file)
    assert ":2: 'for ever'" in line
