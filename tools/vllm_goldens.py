"""Digests of what vLLM's own loader writes, anew: ``python -m tools.vllm_goldens [PRESET …]``, where vLLM is installed.

The cases of ``tests/integrations/vllm/text_models.py`` are named in the same way, and made with 0.33. Those of other presets and
cases than the named ones are left as they are. They are kept in ``tests/integrations/vllm``, so that plans of
vLLM's parameters are held against them where vLLM is not. A version's file has only what differs from the version before.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadmaster.architectures.targets import target_of_vllm
from loadmaster.audit.ranks import load
from tests.integrations.vllm import text_models
from tests.integrations.vllm.golden import (
    DRAFT,
    FILES,
    Parameters,
    before,
    goldens,
    held,
    preset_of,
    ranks_of,
    told,
    write,
)
from tests.integrations.vllm.models import arguments_of


def parameters_of(preset: str, target: str) -> dict[str, Parameters]:
    """Return what vLLM's own loader makes of a preset, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(preset, Path(folder))
        ranks = ranks_of(target)[preset]
        arguments: dict[str, Any] = arguments_of(preset_of(preset))
        arguments["draft"] = "mtp" if preset.endswith(DRAFT) else None
        return {str(rank): told(held(load(path, rank, load_format="auto", **arguments))) for rank in ranks}


def text_digests(name: str) -> text_models.Digests:
    """Return what vLLM's own loader makes of a case of `text_models`."""
    case = text_models.CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = case.write(Path(folder))
        return text_models.joined(
            [
                text_models.told(text_models.of_vllm(case, path, rank), text_models.planned(case, path, rank)[1])
                for rank in case.ranks
            ]
        )


def main(named: Sequence[str]) -> None:
    """Write the files of the installed version."""
    import vllm

    target = target_of_vllm(vllm.__version__)
    assert target is not None, f"vLLM {vllm.__version__} is not described"
    cases = [name for name in named or text_models.CASES if name in text_models.CASES]
    if target == text_models.TARGET and cases:
        text_models.keep({name: text_digests(name) for name in cases})
        print(f"{text_models.FILE}: {text_models.FILE.stat().st_size:,} bytes")
    presets = [name for name in named if name not in text_models.CASES]
    if named and not presets:
        return
    described, known = ranks_of(target), before(target)
    made = {preset: parameters_of(preset, target) for preset in presets or described}
    made = {preset: ranks for preset, ranks in (goldens(target) | made).items() if preset in described}
    kept = {preset: ranks for preset, ranks in made.items() if ranks != known.get(preset)}
    lines = json.dumps(kept, indent=1, sort_keys=True)
    file = FILES[target]
    file.write_text(re.sub(r"\{[^{}]+\}", lambda digests: re.sub(r"\s+", " ", digests[0]), lines) + "\n")
    print(f"{file}: {len(kept)} of {len(made)} presets, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
