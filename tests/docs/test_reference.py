"""The generated reference says what the program says."""

import pytest

from tools import reference


def test_reference_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check"]) == 0, capsys.readouterr().err
