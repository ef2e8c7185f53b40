"""Every command where something around it is broken: no traceback, the documented exit code, an error that says what."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadmaster.cli.main import COMMANDS, WITH_TORCH
from tests.conftest import Tiny

COMMAND = {
    "inspect": "inspect {model}",
    "plan": "plan {model}",
    "fit": "fit {model} --devices H100x2",
    "explain": "explain {model} model.norm.weight",
    "diff": "diff {model} {model}",
    "verify": "verify {model}",
    "load": "load {model}",
    "generate": "generate {model} --prompt-token-ids 3 --max-tokens 1",
    "serve": "serve {model} --engine native --port 0",
    "audit": "audit vllm --list --cases 'smollm2/*'",
    "describe": "describe {model} --output {out} --force --no-transformers",
    "synth": "synth smollm2 {out} --tiny",
}
ANSWER = sorted(COMMAND.keys() - {"serve"})
"""Commands that write to standard output and end by themselves."""
QUICK = ["inspect", "plan"]
"""One that prints by rich and one that fails in ways of its own; what they share with the others is tested on them."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Run:
    """Run a command of `COMMAND` in a shell, given what is done ``before`` it, and what follows ``after`` it on its line."""

    def shell(
        command: str,
        *,
        before: str = "",
        after: str = "",
        model: Path | None = None,
        out: Path | None = None,
        as_owner: bool = False,
        stdout: int = subprocess.PIPE,
        **environment: str | None,
    ) -> subprocess.CompletedProcess[str]:
        known = {**os.environ, "LOADMASTER_TRACEBACK": None, **environment}
        words = COMMAND[command].format(
            model=shlex.quote(str(model or tiny("smollm2"))), out=shlex.quote(str(out or tmp_path / "made"))
        )
        done = subprocess.run(
            ["bash", "-c", f"{before}\n{shlex.quote(sys.executable)} -m loadmaster {words} {after}"],
            env={name: value for name, value in known.items() if value is not None},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=300,
            preexec_fn=_without_passing_over_permissions if as_owner else None,
        )
        assert "Traceback" not in done.stderr + (done.stdout or ""), done.stderr
        assert "Exception ignored" not in done.stderr, done.stderr
        assert done.returncode != 70, done.stderr
        return done

    return shell


def _without_passing_over_permissions() -> None:
    """Let root be held to permissions too: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are not handed to what it starts."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; refused to other users, who have none


def test_every_command_is_here() -> None:
    assert COMMAND.keys() | {"pull"} == COMMANDS.keys()  # pull needs a server: tests/checkpoint/remote/test_pull.py


@pytest.mark.parametrize("command", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in ANSWER])
@pytest.mark.parametrize(
    ("after", "said"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_standard_output_that_cannot_be_written_is_exit_3(command: str, after: str, said: str, run: Run) -> None:
    done = run(command, after=after)
    assert done.returncode == 3
    assert f"loadmaster: error: cannot write standard output: {said}" in done.stderr


@pytest.mark.parametrize("after", ["--json > /dev/full", "--help > /dev/full"])
def test_the_object_and_the_help_are_output_too(after: str, run: Run) -> None:
    assert run("inspect", after=after).returncode == 3


def test_whoever_reads_the_output_may_leave(run: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run("inspect", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("after", ["2>&-", "2> /dev/full", "<&- 2>&-"])
def test_standard_error_that_cannot_be_written_changes_nothing(after: str, tmp_path: Path, run: Run) -> None:
    assert run("plan", after=after).returncode == 0
    done = run("plan", after=after, model=tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")


def test_workers_run_with_all_streams_closed(run: Run) -> None:
    assert run("generate", after="<&- >&- 2>&-").returncode == 3  # its answer could not be printed


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if c in {*QUICK, "synth"} else [pytest.mark.slow]) for c in ANSWER]
)
def test_an_encoding_that_lacks_characters_gets_escapes(command: str, run: Run) -> None:
    done = run(command, LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if c in {*QUICK, *WITH_TORCH} else [pytest.mark.slow]) for c in ANSWER]
)
def test_a_current_directory_that_was_removed_and_no_home(command: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "gone").mkdir()
    done = run(command, before=f"cd {shlex.quote(str(tmp_path / 'gone'))}; rmdir ../gone", HOME=None)
    if command in WITH_TORCH:
        assert done.returncode == 3
        assert "the current directory was removed" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[] if c == "plan" else [pytest.mark.slow]) for c in sorted(COMMAND.keys() - {"audit"})],
)
def test_a_folder_that_it_may_not_enter(command: str, tiny_copy: Tiny, tmp_path: Path, run: Run) -> None:
    closed = tiny_copy("smollm2")
    closed.chmod(0)
    try:
        done = run(command, model=closed, out=closed / "made", as_owner=True)
    finally:
        closed.chmod(0o700)
    assert done.returncode in ((2,) if command == "diff" else (1, 3))
    assert str(closed) in done.stderr
    assert "loadmaster.partial" not in done.stderr
    assert "Permission denied" in done.stderr


def test_a_file_that_cannot_grow(run: Run) -> None:
    done = run("synth", before="ulimit -f 4")
    assert done.returncode == 3
    assert "File too large" in done.stderr


def test_a_manifest_that_cannot_be_written(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    done = run("load", after=f"--verify --manifest {shlex.quote(str(tmp_path / 'file/manifest'))}")
    assert done.returncode == 3
    assert "file/manifest" in done.stderr


@pytest.mark.parametrize(
    ("command", "mib"),
    [
        ("load", 400),  # less than torch's library
        pytest.param("load", 900, marks=pytest.mark.slow),
        pytest.param("generate", 400, marks=pytest.mark.slow),
        pytest.param("generate", 900, marks=pytest.mark.slow),
    ],
)
def test_without_memory(command: str, mib: int, run: Run) -> None:
    done = run(command, before=f"ulimit -c 0; ulimit -v {mib * 1024}")
    assert done.returncode == 3 or (done.returncode == 0 and mib > 400)
    # a worker that is out of memory while torch is loaded may be ended by its libraries
    assert done.returncode == 0 or "memory" in done.stderr or "killed by SIGABRT" in done.stderr
