"""Digests of what vLLM's own loader writes, anew: ``python -m tools.vllm_goldens``, where vLLM is installed.

They are kept in ``tests/integrations/vllm``, so that plans of vLLM's parameters are held against them where vLLM is not. A
version's file has only what differs from the version before.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from loadmaster.architectures.targets import target_of_vllm
from loadmaster.audit.ranks import load
from tests.integrations.vllm.golden import FILES, RANKS, Parameters, before, told, write


def parameters_of(preset: str) -> dict[str, Parameters]:
    """Return what vLLM's own loader makes of a preset, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(preset, Path(folder))
        return {str(rank): told(load(path, rank, load_format="auto").params) for rank in RANKS[preset]}


def main() -> None:
    """Write the file of the installed version."""
    import vllm

    target = target_of_vllm(vllm.__version__)
    assert target is not None, f"vLLM {vllm.__version__} is not described"
    made = {preset: parameters_of(preset) for preset in RANKS}
    known = before(target)
    kept = {preset: ranks for preset, ranks in made.items() if ranks != known.get(preset)}
    lines = json.dumps(kept, indent=1, sort_keys=True)
    file = FILES[target]
    file.write_text(re.sub(r"\{[^{}]+\}", lambda digests: re.sub(r"\s+", " ", digests[0]), lines) + "\n")
    print(f"{file}: {len(kept)} of {len(made)} presets, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
