"""Coverage-guided fuzzing of the header parser: atheris drives the oracle of `tools.fuzz.headers`.

libFuzzer's loop never returns, so `fuzz_headers` runs this module as a process of its own and reads what it says.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = ("__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16", "F4", "F8_E8M0", "C64")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def fuzz_headers(runs: int, seed: int) -> dict[str, Any]:
    """Fuzz in a process of its own; return what it says as JSON values. It ends at the first failure."""
    from tools.fuzz.headers import seeds

    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        folder = Path(root)
        for name in ("corpus", "found", "scratch"):
            (folder / name).mkdir()
        for i, content in enumerate(seeds().values()):
            (folder / "corpus" / f"seed-{i:02d}").write_bytes(content)
        quoted = (f'"\\"{w}\\""' for w in WORDS)
        (folder / "words").write_text("\n".join([*quoted, '"[0,4]"', '"null"', '"true"', '"{}"']) + "\n")
        options = [f"-runs={runs}", f"-seed={seed + 1}", f"-dict={folder / 'words'}", "-max_len=4096"]
        options += ["-print_final_stats=1", f"-artifact_prefix={folder / 'found'}/", str(folder / "corpus")]
        command = [sys.executable, "-m", "tools.fuzz.libfuzzer", str(folder / "scratch"), *options]
        begin = time.perf_counter()
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace")
        seconds = time.perf_counter() - begin
        cases = [repr(p.read_bytes()) for p in sorted((folder / "found").iterdir())]
    said = ran.stdout + ran.stderr
    status = re.findall(r"^#(\d+).* cov: (\d+) ft: (\d+) corp: (\d+)", said, re.MULTILINE)
    done, edges, features, corpus = map(int, status[-1] if status else (0, 0, 0, 0))
    executed = re.findall(r"number_of_executed_units: (\d+)", said)
    failures: dict[str, dict[str, list[str]]] = {}
    if ran.returncode or not status:
        why = [line for line in said.splitlines() if re.search(r"Error|Exception", line)][:8]
        failures["headers"] = {"what": why or [said[-2000:]], "cases": cases}
        print("\n".join(["FAILURE in headers", *failures["headers"]["what"], *cases]), flush=True)
    return {
        "runs": int(executed[-1]) if executed else done,
        "seconds": round(seconds, 1),
        "seed": seed + 1,
        "edges_covered": edges,
        "features": features,
        "corpus": corpus,
        "failures": failures,
    }


def main() -> None:
    """Hand over to atheris, with a folder for its files as first argument; never returns."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["loadmaster.checkpoint"]):
        headers = importlib.import_module("tools.fuzz.headers")
    scratch = Path(sys.argv.pop(1))

    def one(data: bytes) -> None:
        if headers.check_parser(data) is None or len(data) % 4 == 0:
            headers.check_file(data, scratch)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
