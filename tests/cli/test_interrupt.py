"""Ctrl-C at known moments of a start: the command ends with exit code 130 and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

LIMIT_S = 300
"""Far more than it takes, on a busy machine too."""

SCRIPT = """
import os, signal, sys

where, disposition, swallowed = sys.argv[1:4]
signal.signal(signal.SIGINT, signal.SIG_IGN if disposition == "ignored" else signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == where:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:  # as an import with a bare except does
                if swallowed != "swallowed":
                    raise

sys.meta_path.insert(0, Interrupt())
sys.argv[:] = ["loadmaster", *sys.argv[4:]]
from loadmaster.__main__ import entry
entry()
"""

COMMANDS = {
    "generate": ["--prompt", "Hello", "--max-tokens", "200", "--ignore-eos"],
    "serve": ["--port", "0", "--engine", "native"],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from loadmaster.cli.main import main

    path = tmp_path_factory.mktemp("interrupt") / "tiny"
    assert main(["synth", "glm-5.1-fp8", str(path), "--tiny"]) == 0
    return path


@pytest.mark.parametrize(
    ("command", "where", "disposition", "swallowed"),
    [
        ("generate", "loadmaster.cli.main", "default", "raised"),
        ("generate", "loadmaster.plan", "default", "swallowed"),
        ("generate", "loadmaster.plan", "default", "raised"),
        ("generate", "tokenizers", "default", "swallowed"),
        ("serve", "loadmaster.plan", "ignored", "raised"),
        ("serve", "uvicorn", "default", "swallowed"),
        ("serve", "uvicorn", "ignored", "raised"),
    ],
)
def test_an_interruption_in_the_midst_of_an_import_ends_the_command(
    checkpoint: Path, tmp_path: Path, command: str, where: str, disposition: str, swallowed: str
) -> None:
    process = start(
        ["-c", SCRIPT, where, disposition, swallowed, command, checkpoint, "-pp", 2, *COMMANDS[command]], tmp_path
    )
    assert ended(process, []) == (130, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_while_workers_start_ends_them_too(checkpoint: Path, tmp_path: Path, command: str) -> None:
    process = start(["-c", SCRIPT, "", "default", "", command, checkpoint, "-pp", 2, *COMMANDS[command]], tmp_path)
    until = time.monotonic() + LIMIT_S
    while not (workers := psutil.Process(process.pid).children()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert ended(process, workers) == (130, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", [b"", b"\x10", (16).to_bytes(8, "little"), (16).to_bytes(8, "little") + b"half"])
def test_a_worker_whose_engine_ended_before_it_had_its_job_ends_in_silence(job: bytes) -> None:
    command = [sys.executable, "-m", "loadmaster.workers.worker", "0"]
    worker = subprocess.run(command, input=job, capture_output=True, timeout=LIMIT_S)
    assert (worker.returncode, worker.stdout, worker.stderr) == (0, b"", b"")


def test_a_worker_asks_for_its_end_before_it_imports_torch() -> None:
    script = "import sys, loadmaster.workers.worker; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], timeout=LIMIT_S).returncode == 0


def start(arguments: list[object], temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


def ended(process: subprocess.Popen[str], workers: list[psutil.Process]) -> tuple[int, int]:
    """Return the exit code and the number of tracebacks, once neither the process nor a worker is left."""
    try:
        _, errors = process.communicate(timeout=LIMIT_S)  # workers have its standard error: their end too
        assert psutil.wait_procs(workers, timeout=LIMIT_S)[1] == []
    finally:
        for left in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
            left.kill()
    return process.returncode, errors.count("Traceback")
