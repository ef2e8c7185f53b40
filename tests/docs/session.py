"""Runs the blocks of one document, in order, as a reader would who follows it from an empty folder."""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import Block

LIMIT_S = 900
"""How long one block may take."""
TOO_LONG = f"still running after {LIMIT_S} s"
INTERPRETER = Path(__file__).with_name("interpreter.py")

AFTER = "\x1e"  # on the line between the output of one console command and the next


class BlockError(Exception):
    """A block did not do what the document says."""


class Session:
    """One working folder, one environment: ``loadmaster`` on PATH, no network, no terminal.

    Each ``bash`` or ``console`` block is a process of its own: files last from block to block, shell variables don't. Blocks of
    Python run in one process, each with an empty namespace (`tests.docs.interpreter`). A server may be started with ``&`` and
    its output sent to a file; whatever still runs when the document ends is ended then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._groups: list[int] = []
        self._interpreter: subprocess.Popen[str] | None = None
        self._printed = tempfile.TemporaryFile()  # by the interpreter  # noqa: SIM115
        nowhere = "http://127.0.0.1:9"  # the discard port
        self._env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "http_proxy": nowhere,
            "https_proxy": nowhere,
            "no_proxy": "localhost,127.0.0.1,::1",
            "COLUMNS": "100",
            "NO_COLOR": "1",
        }

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[Session]:
        session = cls(folder)
        try:
            yield session
        finally:
            for group in session._groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            session._printed.close()
            if session._interpreter is not None:
                session._interpreter.communicate()

    def run(self, block: Block) -> None:
        """Run a block.

        ``bash`` must end with status 0, under ``set -euo pipefail``. ``python`` must raise nothing; one that begins
        with ``>>>`` must print what it shows. Each command (``$ …``) of a ``console`` block must end with status 0,
        unless the next is ``$ echo $?``, and print what is shown, where something is; ``...`` stands for anything.

        Raises:
            BlockError: it didn't.
        """
        if block.language == "bash":
            self._expect_success(["bash", "-euo", "pipefail", "-c", block.text])
        elif block.language == "console":
            self._console(block.text)
        elif block.text.lstrip().startswith(">>>"):
            script = self._folder / f".block-{block.line}.txt"
            script.write_text(block.text, encoding="utf-8")
            flags = ("-o", "ELLIPSIS", "-o", "NORMALIZE_WHITESPACE")
            self._expect_success([sys.executable, "-m", "doctest", *flags, script.name])
        else:
            self._python(block)

    def _python(self, block: Block) -> None:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, "-P", str(INTERPRETER)],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                start_new_session=True,
                text=True,
            )
            self._groups.append(self._interpreter.pid)
        process = self._interpreter
        assert process.stdin is not None
        assert process.stdout is not None
        script = self._folder / f".block-{block.line}.py"
        script.write_text(block.text, encoding="utf-8")
        before = self._printed.seek(0, os.SEEK_END)
        process.stdin.write(f"{script}\n")
        process.stdin.flush()
        in_time = bool(select.select([process.stdout], [], [], LIMIT_S)[0])
        status = process.stdout.readline().strip() if in_time else ""
        if status != "0":
            self._printed.seek(before)
            printed = self._printed.read().decode(errors="replace")
            why = f"exit status {status}" if status else "it ended the process" if in_time else TOO_LONG
            raise BlockError(f"{why}\n{printed}")

    def _expect_success(self, command: list[str]) -> None:
        status, output = self._process(command)
        if status:
            raise BlockError(f"exit status {status}\n{output}")

    def _console(self, text: str) -> None:
        steps = console_steps(text)
        script = "\n".join(
            f"{command}\nstatus=$?; printf '\\n{AFTER}%d\\n' $status; (exit $status)" for command, _ in steps
        )
        _, output = self._process(["bash", "-c", script])
        results = re.findall(rf"(.*?)\n{AFTER}(\d+)\n", output, re.DOTALL)
        if len(results) < len(steps):
            raise BlockError(f"ended at `{steps[len(results)][0]}`\n{output}")
        following = [command for command, _ in steps[1:]] + [""]
        for (command, wanted), (got, status), after in zip(steps, results, following, strict=True):
            if status != "0" and after != "echo $?":
                raise BlockError(f"`{command}`: exit status {status}\n{got}")
            if wanted.strip() and not matches(wanted, got):
                raise BlockError(f"`{command}` prints\n{got}\nand the document says\n{wanted}")

    def _process(self, command: list[str]) -> tuple[int, str]:
        with tempfile.TemporaryFile() as output:  # a pipe would stay open for as long as a server in the background
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            try:
                status = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = -1
            output.seek(0)
            text = output.read().decode(errors="replace")
        if status == -1:
            raise BlockError(f"{TOO_LONG}\n{text}")
        return status, text


def console_steps(text: str) -> list[tuple[str, str]]:
    """Return commands and the output shown for each. A backslash at a line's end continues a command."""
    steps: list[tuple[str, str]] = []
    continued = False
    for line in text.splitlines():
        if continued:
            steps[-1] = (steps[-1][0] + "\n" + line.removeprefix("> "), "")
        elif line.startswith("$ "):
            steps.append((line[2:], ""))
        elif steps:
            steps[-1] = (steps[-1][0], steps[-1][1] + line + "\n")
        elif line.strip():
            raise BlockError(f"a console block begins with `$ `, not with `{line}`")
        continued = line.endswith("\\") and (continued or line.startswith("$ "))
    return steps


def matches(wanted: str, got: str) -> bool:
    """Return whether an output is the one shown, as doctest compares: ``...`` is anything, space is space."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted.strip() + "\n", got.strip() + "\n", flags)
