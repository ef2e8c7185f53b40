"""Reads ``config.json`` as a JSON object. What its keys mean is decided in the architectures.

Older ModelOpt exports store the quantisation in a separate file, ``hf_quant_config.json``. It is read here and becomes the
config's ``quantization_config``, where everything else expects it. `loadmaster.checkpoint.params` reads another file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Mapping
from itertools import count
from math import isinf
from typing import Any

from loadmaster.checkpoint.content import check_content
from loadmaster.checkpoint.listing import base_model_of
from loadmaster.checkpoint.lookalike import CONFIG, PUBLISHERS, recognise
from loadmaster.checkpoint.params import as_config
from loadmaster.checkpoint.small_files import UnreadableError
from loadmaster.checkpoint.source import Source
from loadmaster.findings import Finding, Severity
from loadmaster.limits import CONFIG_BYTES, CONFIG_DEPTH, CONFIG_PARTS, LimitError

QUANTISATION = "hf_quant_config.json"


def read_config(source: Source) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Read a checkpoint's config.json; None with a finding where it is missing or cannot be used.

    Without a config.json, Mistral's ``params.json`` is read (`loadmaster.checkpoint.params`).
    If it has no ``quantization_config``, that of ``hf_quant_config.json`` is added, where that file exists.
    """
    if not source.has(CONFIG):
        return _publishers(source)
    config = read_object(source, CONFIG, "error")
    if isinstance(config, Finding):
        return None, (config,)
    if not source.has(QUANTISATION):
        return config, ()
    stated = _stated_quantisation(config)
    severity: Severity = "error" if stated is None else "warning"
    value = read_object(source, QUANTISATION, severity)
    if isinstance(value, Finding):
        return config, (value,)
    if (wrong := _impossible(value)) is not None:
        return config, (Finding("config-invalid", severity, f"{QUANTISATION}: {wrong}", file=QUANTISATION),)
    quantisation = value["quantization"]
    if stated is not None:
        return config, _contradiction(stated, quantisation)
    if quantisation["quant_algo"] is None:  # only the KV cache is quantised
        return config, ()
    return {**config, "quantization_config": {"quant_method": "modelopt", **quantisation}}, ()


def config_files(names: Container[str]) -> tuple[str, ...]:
    """Return those of a checkpoint's files that its config is read from.

    >>> config_files({"config.json", "params.json"}), config_files({"params.json"})
    (('config.json',), ('params.json',))
    """
    read = (CONFIG,) if CONFIG in names else (PUBLISHERS,)
    return tuple(n for n in (*read, QUANTISATION) if n in names)


def _publishers(source: Source) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Read the config in its publisher's own form, where there is no config.json and it can be read."""
    params = read_object(source, PUBLISHERS, "error") if source.has(PUBLISHERS) else None
    if isinstance(params, Finding):
        return None, (params,)
    config = None if params is None else as_config(params)
    return (None, (_missing(source),)) if config is None else (config, ())


def _missing(source: Source) -> Finding:
    """Report that there is no config.json, and what there is if it is not a model."""
    message, hint = "there is no config.json", "it is published next to the shards; copy it there"
    if lookalike := recognise(source.names(), base_model_of(source)):
        message, hint = f"{message}: this is {lookalike.what}", lookalike.remedy
    return Finding("config-missing", "error", message, file=CONFIG, hint=hint)


def read_object(source: Source, name: str, severity: Severity) -> dict[str, Any] | Finding:
    """Read a JSON file strictly and return its object; a finding where it is not one."""

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            twice, _ = Counter(k for k, _ in pairs).most_common(1)[0]
            raise ValueError(f"the key {twice[:80]!a} occurs twice")
        return values

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def number(text: str) -> float:
        if isinf(value := float(text)):
            raise ValueError(f"{text[:80]} is too large a number")
        return value

    try:
        text = source.read(name, CONFIG_BYTES)
        if (finding := check_content(name, text, len(text))) is not None:
            return finding
        if (parts := text.count(b"{") + text.count(b"[")) > CONFIG_PARTS.value:
            raise LimitError(CONFIG_PARTS, parts)
        value = json.loads(text, object_pairs_hook=strict, parse_constant=refuse, parse_float=number)
        _check(value)
    except LimitError as error:
        return Finding("limit-exceeded", severity, f"it has {error}", file=name, hint=error.hint)
    except (UnreadableError, ValueError, RecursionError) as error:
        message = f"{name} cannot be read: {error}"
        return Finding("config-invalid", severity, message, file=name, hint=source.remedy(name))
    if not isinstance(value, dict):
        return Finding("config-invalid", severity, f"{name} is not a JSON object", file=name)
    return value


def _check(value: object) -> None:
    """Check how deep a value nests, and that its strings can be encoded.

    Raises:
        ValueError: a string has a lone surrogate; LimitError: it nests too deep.
    """
    level: list[object] = [value]
    for depth in count():
        if not level:
            return
        if depth > CONFIG_DEPTH.value:
            raise LimitError(CONFIG_DEPTH, depth)
        inner: list[object] = []
        for v in level:
            if isinstance(v, dict):
                inner += v.keys()
                inner += v.values()
            elif isinstance(v, list):
                inner += v
            elif isinstance(v, str) and not v.isascii():
                v.encode()
        level = inner


def _stated_quantisation(config: Mapping[str, Any]) -> object:
    """Return the quantization_config of the config, or of a section such as ``text_config``; None if there is none."""
    sections = (v for v in config.values() if isinstance(v, Mapping))
    return next((q for c in (config, *sections) if (q := c.get("quantization_config")) is not None), None)


def _impossible(value: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an ``hf_quant_config.json``; the value of ``quant_algo`` is checked later, with all claims."""
    quantisation = value.get("quantization")
    if not isinstance(quantisation, Mapping):
        return "quantization is not an object"
    if "quant_algo" not in quantisation:
        return "quantization has no quant_algo"
    algorithm = quantisation["quant_algo"]
    if algorithm is not None and not isinstance(algorithm, str):
        return f"quantization.quant_algo is {algorithm!r}, expected a name"
    excluded = quantisation.get("exclude_modules") or []
    if not isinstance(excluded, list) or not all(isinstance(m, str) for m in excluded):
        return "quantization.exclude_modules is not a list of strings"
    return None


def _contradiction(stated: object, quantisation: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Report that config.json, which is used, states another quantisation than ModelOpt's file."""
    if not isinstance(stated, Mapping):
        return ()  # refused later
    theirs = str(quantisation["quant_algo"]).upper()
    method = str(stated.get("quant_method"))
    ours = str(stated.get("quant_algo", theirs)).upper() if method.startswith("modelopt") else method
    if ours == theirs:
        return ()
    message = f"this file says that the weights are quantised as {theirs}, config.json says {ours}; using config.json"
    return (Finding("quantization-disagrees", "warning", message, file=QUANTISATION),)
