"""The tests' folders mirror the package's: each package of ``loadmaster`` has its folder, with a test of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import loadmaster

SOURCE = Path(loadmaster.__file__).parent
ROOMS = sorted(str(f.parent.relative_to(SOURCE)) for f in SOURCE.rglob("__init__.py") if f.parent != SOURCE)


@pytest.mark.parametrize("room", ROOMS)
def test_each_package_has_a_folder_of_tests(room: str) -> None:
    assert list((Path(__file__).parent / room).glob("test_*.py")), f"tests/{room} has no test_*.py"
