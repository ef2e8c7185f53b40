"""What a pipe gets: whole records, one a line, whatever the terminal's width is said to be."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from loadmaster.checkpoint import open_checkpoint
from loadmaster.plan import build_plan
from tests.conftest import Tiny


def lines(*args: object, columns: int = 20) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "loadmaster", *map(str, args)],
        env={**os.environ, "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_digest_is_one_line_a_parameter(tiny: Tiny) -> None:
    path = tiny("glm-5.1-fp8")
    said = lines("load", path, "--digest")
    names = [s.name for s in build_plan(open_checkpoint(path)).rank(0).specs]
    records = [re.fullmatch(r"[0-9a-f]{16}  \w+ \[[\d, ]+\]  (\S+)", line) for line in said[: len(names)]]
    assert sorted(record[1] for record in records if record) == sorted(names)
    assert said[len(names)].split()[:2] == ["rank", "needed"]
    assert len(said) == len(names) + 3  # the table's head and its rank, and the verdict


@pytest.mark.parametrize("args", [["plan", "-pp", "2", "--params", "1"], ["inspect"], ["inspect", "--match", "layers"]])
def test_no_line_depends_on_the_width_and_nothing_is_left_out(args: list[str], tiny: Tiny) -> None:
    command = [args[0], tiny("qwen3"), *args[1:]]
    narrow, wide = (
        [re.sub(r"in [\d.]+ s", "", line) for line in lines(*command, columns=columns)] for columns in (20, 400)
    )
    assert narrow == wide
    assert not any("…" in line for line in narrow)
