"""A model's limits and defaults: maximum length, vocabulary size, end tokens, and default sampling parameters.

They come from ``config.json`` and, if the checkpoint has one, ``generation_config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.arguments import shown
from loadmaster.errors import ConfigError, RequestError


@dataclass(frozen=True)
class Limits:
    """``max_model_len`` counts prompt and answer together. ``sampling`` has the model's own sampling parameters."""

    max_model_len: int
    vocab_size: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)

    def check_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """Check a prompt.

        Raises:
            RequestError: the prompt is empty or too long, or has ids that are not in the model's vocabulary.
        """
        if not isinstance(prompt_token_ids, Sequence) or isinstance(prompt_token_ids, (str, bytes)):
            raise RequestError(f"the prompt is {shown(prompt_token_ids)}, expected a list of token ids")
        for token in prompt_token_ids:
            if not isinstance(token, int):
                raise RequestError(f"the prompt has {shown(token)} among its token ids, expected integers")
        if not prompt_token_ids:
            raise RequestError("the prompt has no tokens")
        if len(prompt_token_ids) >= self.max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt_token_ids)} tokens, and the model allows {self.max_model_len} tokens "
                "for prompt and answer together",
                hint="send a shorter prompt",
            )
        size = self.vocab_size
        unknown = next((t for t in prompt_token_ids if t < 0 or (size is not None and t >= size)), None)
        if unknown is not None:
            raise RequestError(
                f"token id {unknown} is not in the model's vocabulary"
                + (f" of {size} tokens" if size is not None else "")
            )


def read_limits(config: Config, model_path: Path, max_model_len: int | None = None) -> Limits:
    """Return the limits of a model. ``max_model_len`` is the length that the user requested.

    Raises:
        ConfigError: neither the config nor the user gives a length, or the requested length is longer than the config's;
            or generation_config.json is not a JSON object.
    """
    generation = _generation_config(model_path)
    vocab_size = config.values.get("vocab_size")
    return Limits(
        max_model_len=_model_length(config.values.get("max_position_embeddings"), max_model_len),
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        eos_token_ids=_token_ids(generation.get("eos_token_id")) or _token_ids(config.values.get("eos_token_id")),
        sampling={
            name: generation[name]
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if isinstance(generation.get(name), (int, float))
        },
    )


def _model_length(configured: object, requested: int | None) -> int:
    longest = configured if isinstance(configured, int) else None
    if requested is not None and requested < 1:
        raise ConfigError(f"--max-model-len is {requested}, expected at least 1")
    if requested is None:
        if longest is None:
            raise ConfigError("config.json has no max_position_embeddings", hint="pass --max-model-len")
        return longest
    if longest is not None and requested > longest:
        raise ConfigError(
            f"--max-model-len is {requested}, expected at most {longest}, the model's max_position_embeddings"
        )
    return requested


def _generation_config(model_path: Path) -> dict[str, Any]:
    path = model_path / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value


def _token_ids(value: object) -> tuple[int, ...]:
    """Return one id or a list of them as a tuple.

    >>> _token_ids(2), _token_ids([2, 7]), _token_ids(None)
    ((2,), (2, 7), ())
    """
    if isinstance(value, int):
        return (value,)
    return tuple(t for t in value if isinstance(t, int)) if isinstance(value, list) else ()
