"""Writes a full-size checkpoint for any config.json whose architecture is supported, by this package or a plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadmaster.architectures.mlx import KEYS
from loadmaster.architectures.registry import find_family
from loadmaster.checkpoint.config import read_config, read_object
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.checkpoint.source import LocalFolder
from loadmaster.errors import InputError, UnsupportedError
from loadmaster.findings import Finding, errors
from loadmaster.plan.claims import read_claims
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import Preset
from loadmaster.synth.write import write_full_size

SHARD_BYTES = 5 * 10**9
"""The size of a shard in most published models."""

PLAIN = "BF16"


def read_config_file(file: Path) -> dict[str, Any]:
    """Return a model's config from a file of any name, or from the config.json of a folder.

    Raises:
        InputError: the file does not exist, or is not a JSON object.
    """
    if file.is_dir():
        file /= CONFIG
    if not file.is_file():
        raise InputError(f"{file} is not a file", hint="give a model's config.json")
    config: dict[str, Any] | Finding | None
    if file.name == CONFIG:
        config, findings = read_config(LocalFolder(file.parent))
        if defects := errors(findings):
            raise InputError(f"{file}: {defects[0].message}", hint=defects[0].hint)
    else:
        config = read_object(LocalFolder(file.parent), file.name, "error")
    if isinstance(config, Finding):
        raise InputError(f"{file}: {config.message}", hint=config.hint or "give a model's config.json")
    assert config is not None, "what cannot be read is a finding"
    return config


def write_described(config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write real headers and sparse bodies of the model that ``config``, a config.json, describes; see `write_full_size`.

    Weights are in the first format that the config's ``quantization_config`` claims. If that is not supported, they are not
    quantised, and the config is written without it. Names are in the family's usual spelling.

    Returns:
        ``num_tensors``, ``num_files`` and ``payload_bytes`` of what was written, and ``notes``: sentences on what the config
        does not state, or where it was not followed.

    Raises:
        ConfigError: the architecture is not known, or a size is missing or impossible.
        UnsupportedError: the family does not support this config.
    """
    family, values = find_family(config), dict(config)
    notes = []
    try:
        claims = read_claims(family.describe(values), PLAIN)
    except UnsupportedError as error:
        values = {k: v for k, v in values.items() if k not in KEYS}
        claims = read_claims(family.describe(values), PLAIN)
        notes.append(
            f"the weights are {claims.model_dtype}, and config.json is written without quantization_config: "
            + error.message
        )
    language = family.describe(values).values
    if not (language.get("dtype") or language.get("torch_dtype")):
        notes.append(f"config.json names no dtype: unquantised tensors are {claims.model_dtype}")
    preset = Preset("config", values, {}, num_shards=1, family=family)
    payload = sum(e.signature.num_bytes for e in inventory(preset, values))
    written = write_full_size(Preset("config", values, {}, num_shards=-(-payload // SHARD_BYTES), family=family), out)
    return {**written, "notes": notes}
