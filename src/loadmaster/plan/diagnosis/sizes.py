"""Numbers of config.json that no tensor's shape depends on, compared with the model and with published models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeGuard

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Schema
from loadmaster.findings import Finding

LONGEST: Final = 10**8
"""Positions beyond any model: the longest published context is ten million."""

_CHOSEN: Final = ("num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts")


def odd_sizes(config: Config, schema: Schema) -> Iterator[Finding]:
    """Yield impossible values (more experts chosen than there are) and unlikely ones (a context of a billion)."""
    experts = max((t.experts for kind in schema.kinds.values() for t in kind), default=0)
    for key in _CHOSEN:
        chosen = config.values.get(key)
        if experts and _is_count(chosen) and not 1 <= chosen <= experts:
            message = f"{key} is {_short(chosen)}, expected 1 to {experts}, the number of experts"
            yield Finding("config-invalid", "error", message, file="config.json", hint=_HINT)
    groups, kept = config.values.get("n_group"), config.values.get("topk_group")
    if experts and _is_count(groups) and _is_count(kept) and kept > groups:
        message = f"topk_group is {_short(kept)}, expected at most {_short(groups)}, the number of groups (n_group)"
        yield Finding("config-invalid", "error", message, file="config.json", hint=_HINT)
    positions = config.values.get("max_position_embeddings")
    if _is_count(positions) and positions > LONGEST:
        message = f"max_position_embeddings is {_short(positions)}; no published model has more than ten million"
        yield Finding("config-implausible", "warning", message, file="config.json", hint=_HINT)


_HINT: Final = "take the published config.json"


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int


def _short(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**15 else "an integer of more than 15 digits"
