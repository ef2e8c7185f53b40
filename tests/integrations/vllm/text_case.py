"""A tiny text model that is no preset, whose parameters in vLLM are described: its config, and the ranks that are told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadmaster.architectures.registry import find_family
from loadmaster.audit.ranks import Rank
from loadmaster.testing.damaged import DamagedCheckpoint
from loadmaster.testing.plans import write_checkpoint
from tests.architectures.test_text_models import MODELS
from tests.integrations.vllm.golden import CUT, SPREAD, STAGES, WHOLE

EVERY = WHOLE + STAGES + CUT
WITH_EXPERTS = (*EVERY, *SPREAD[1:])


@dataclass(frozen=True)
class TextCase:
    """``config`` is written and planned. ``more`` is what vLLM wants in config.json besides, ``files`` what it wants beside it.

    ``engine`` are vLLM's arguments. ``beside`` are names of vectors of the hidden size that are stored, and held by vLLM, outside
    the language model. ``ranks`` are told, of the draft model if it is a case of ``drafts``. ``room`` is that of experts on a
    rank, as in `golden`. ``spelling`` is the number of the family's spelling that it is stored in. ``lost`` are endings of stored
    parameters that vLLM's own loader leaves as they were.
    """

    config: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    ranks: tuple[Rank, ...] = EVERY
    drafts: bool = False
    beside: tuple[str, ...] = ()
    room: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    spelling: int = 0
    lost: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """Write the checkpoint."""
        stored = write_checkpoint(find_family(self.config), self.config, path, spelling=self.spelling).table.names
        for name in self.beside:
            norm = next(n for n in stored if n.endswith(".norm.weight"))
            DamagedCheckpoint(path).copy(f"^{re.escape(norm)}$", name)
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | self.more))
        for name, content in self.files.items():
            (path / name).write_text(content)
        return path

    @property
    def arguments(self) -> dict[str, Any]:
        """vLLM's arguments."""
        draft = {"draft": "mtp"} if self.drafts else {}
        return {"skip_tokenizer_init": True, **draft, **self.engine}


def text(architecture: str, model_type: str, **changes: Any) -> dict[str, Any]:
    """Return the tiny config of an architecture with changes; None removes a value."""
    own = {"dtype": "bfloat16", **MODELS.get(architecture, {}), **changes}
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **{k: v for k, v in own.items() if v is not None},
    }
