"""A worker's environment. How workers are watched and ended is shown with real ones, in test_crew.py and tests/failures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loadmaster.workers.process import ALLOCATOR, GROWING, SPIN_COUNT, environment


def test_a_worker_inherits_variables_and_the_import_path() -> None:
    made = environment({"HOME": "/h", "PYTHONPATH": "/elsewhere"})
    assert made["HOME"] == "/h"
    assert made["PYTHONPATH"].split(os.pathsep) == [path or str(Path.cwd()) for path in sys.path]


def test_defaults_do_not_replace_what_is_set() -> None:
    assert environment({})["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert environment({"GOMP_SPINCOUNT": "5"})["GOMP_SPINCOUNT"] == "5"


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_gpu_allocators_configuration_is_the_users_under_either_name(name: str) -> None:
    assert environment({})[ALLOCATOR[0]] == GROWING
    made = environment({name: "max_split_size_mb:64"})
    assert {key: made.get(key) for key in ALLOCATOR} == {**dict.fromkeys(ALLOCATOR), name: "max_split_size_mb:64"}
