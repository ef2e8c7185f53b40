"""Loads a tokenizer with transformers' class for it, without torch where that is possible.

``AutoTokenizer`` chooses the class with the help of the model's config, whose classes import torch. That takes two seconds, and
memory that the engine's process never uses. Most checkpoints name the class for any ``tokenizer.json``, and that class is
taken, except for a few models. Which ones is known of one version of transformers; with any other version, ``AutoTokenizer``
chooses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

KNOWN: Final = "5.24"
"""The version of transformers whose choice is known here."""

ANY: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""The class for any ``tokenizer.json``, by its older and its newer name."""

OTHERWISE: Final = frozenset(
    ("hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp", "siglip2")
)
"""Types of models for whose tokenizers ``AutoTokenizer`` takes a special class, whatever the checkpoint names."""


def load(path: Path) -> Any:
    """Return the tokenizer of the checkpoint in ``path``. Code from the checkpoint is never run.

    Raises:
        Exception: of many types, transformers' own.
    """
    import transformers

    kind = "PreTrainedTokenizerFast" if is_for_any(path, transformers.__version__) else "AutoTokenizer"
    # without trust_remote_code=False transformers would ask at a terminal whether to run the checkpoint's code
    return getattr(transformers, kind).from_pretrained(str(path), local_files_only=True, trust_remote_code=False)


def is_for_any(path: Path, version: str) -> bool:
    """Return whether ``AutoTokenizer`` of a version of transformers is known to take the class for any ``tokenizer.json``."""
    if (
        not version.startswith(f"{KNOWN}.")
        or not (path / "tokenizer.json").is_file()
        or (path / "tekken.json").exists()
    ):
        return False
    named, model = _read(path / "tokenizer_config.json"), _read(path / "config.json")
    return named.get("tokenizer_class") in ANY and "auto_map" not in named and model.get("model_type") not in OTHERWISE


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is none."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
