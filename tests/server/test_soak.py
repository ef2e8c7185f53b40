"""A short soak of the real server, and the judgement of a process's samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tools.soak.watch import Sample, Watched, report


def watched(rss_mib: list[float], num_fds: list[int]) -> Watched:
    pairs = zip(rss_mib, num_fds, strict=True)
    return Watched("server", psutil.Process(), [Sample(float(at), *pair) for at, pair in enumerate(pairs)])


def test_memory_that_stays_after_the_warm_up_is_no_growth() -> None:
    figures, grown = report(watched([100.0] * 10 + [300.0] * 20, [9] * 30), since=10)
    assert grown == []
    assert figures == {
        "rss_mib": [300.0, 300.0],
        "mib_per_hour": 0.0,
        "fds": [9, 9],
        "rss_mib_over_time": [300.0] * 8,
    }


def test_memory_and_descriptors_that_grow_are_named() -> None:
    _, grown = report(watched([300.0 + at for at in range(30)], [9 + at // 2 for at in range(30)]), since=0)
    assert [text.split(" grew")[0] for text in grown] == ["server: memory", "server: file descriptors"]


def test_a_process_that_ended_early_is_named() -> None:
    _, grown = report(watched([300.0] * 5, [9] * 5), since=0)
    assert "it ended" in grown[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--mtp"]])
def test_twenty_seconds_leave_nothing_behind(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "tools.soak", "--minutes", "0.35", "--results", str(tmp_path), *options]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "soak.json").read_bytes())["wrong"] == []
