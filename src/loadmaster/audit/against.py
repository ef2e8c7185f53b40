"""The results of another version of the engine: run by another Python, or read from the file of an earlier run."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from loadmaster.audit.recorded import Recorded, read_recorded
from loadmaster.errors import UnsupportedError, UsageError


def recorded_by(other: str, cases: str) -> Recorded:
    """Return the results of ``other``: those in a ``.json`` file, or of the cases that match when another Python runs them.

    The other Python imports its own installation of this package. Both must be the same version, or checkpoints and verdicts
    may differ for another reason than the engine.

    Raises:
        UsageError: the file does not hold results, or the Python cannot be run.
        UnsupportedError: the other audit failed.
    """
    if other.endswith(".json"):
        recorded = read_recorded(Path(other))
        return replace(recorded, rows=[row for row in recorded.rows if fnmatchcase(row["name"], cases)])
    with TemporaryDirectory(prefix="loadmaster-audit-") as folder:
        command = [other, "-m", "loadmaster", "audit", "vllm", "--cases", cases, "--out", folder]
        try:
            finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise UsageError(f"--against {other}: {error.strerror}", hint="give a Python or a .json file") from error
        if finished.returncode:
            raise UnsupportedError(
                f"the audit with {other} failed (exit code {finished.returncode}):\n{finished.stderr[-2000:].strip()}",
                hint="the other environment needs Loadmaster and vLLM",
            )
        (path,) = Path(folder).glob("*.json")
        return read_recorded(path)
