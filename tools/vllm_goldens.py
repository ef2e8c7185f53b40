"""Digests of what vLLM's own loader writes, anew: ``python -m tools.vllm_goldens``, where vLLM is installed.

They are kept in ``tests/integrations/vllm``, so that plans of vLLM's parameters are held against them where vLLM is not.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from loadmaster.audit.ranks import load
from tests.integrations.vllm.golden import FILE, RANKS, Parameters, told, write


def parameters_of(preset: str) -> dict[str, Parameters]:
    """Return what vLLM's own loader makes of a preset, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(preset, Path(folder))
        return {str(rank): told(load(path, rank, load_format="auto").params) for rank in RANKS[preset]}


def main() -> None:
    """Write the file."""
    made = {preset: parameters_of(preset) for preset in RANKS}
    lines = json.dumps(made, indent=1, sort_keys=True)
    FILE.write_text(re.sub(r"\{[^{}]*\}", lambda digests: re.sub(r"\s+", " ", digests[0]), lines) + "\n")
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
