"""``config.json``, read as what it is: a JSON object. What its keys mean is the architectures' business.

ModelOpt's older exports tell the quantisation in a file of its own, ``hf_quant_config.json``; it is read here, so that all
others find it where it belongs, as the config's ``quantization_config``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import count
from math import isinf
from pathlib import Path
from typing import Any

from loadmaster.checkpoint.content import check_content
from loadmaster.checkpoint.lookalike import CONFIG, base_model, printable, recognise
from loadmaster.checkpoint.regular import is_there, read_regular
from loadmaster.findings import Finding, Severity
from loadmaster.limits import CONFIG_BYTES, CONFIG_DEPTH, CONFIG_PARTS, LimitError

QUANTISATION = "hf_quant_config.json"


def read_config(folder: Path) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Read a folder's config.json; None with a finding where there is none, or none that can be used.

    Where it has no ``quantization_config``, and an ``hf_quant_config.json`` lies beside it, it gets that one's.
    """
    if not is_there(folder / CONFIG):
        return None, (_missing(folder),)
    config = read_object(folder / CONFIG, "error")
    if isinstance(config, Finding):
        return None, (config,)
    if not is_there(folder / QUANTISATION):
        return config, ()
    own = _own_quantisation(config)
    severity: Severity = "error" if own is None else "warning"
    value = read_object(folder / QUANTISATION, severity)
    if isinstance(value, Finding):
        return config, (value,)
    if (wrong := _impossible(value)) is not None:
        return config, (Finding("config-invalid", severity, f"{QUANTISATION}: {wrong}", file=QUANTISATION),)
    quantisation = value["quantization"]
    if own is not None:
        return config, _contradiction(own, quantisation)
    if quantisation["quant_algo"] is None:  # a quantised cache alone
        return config, ()
    return {**config, "quantization_config": {"quant_method": "modelopt", **quantisation}}, ()


def _missing(folder: Path) -> Finding:
    """Say that there is no config.json, and what the folder is if it is no model's."""
    message, hint = "there is no config.json", "it is published beside the shards; copy it there"
    if found := recognise([p.name for p in folder.iterdir()], base_model(folder)):
        message, hint = f"{message}: this is {found.what}", found.remedy
    return Finding("config-missing", "error", message, file=CONFIG, hint=hint)


def read_object(path: Path, severity: Severity) -> dict[str, Any] | Finding:
    """Return the object that a JSON file is, strictly read; a finding where it is none."""

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice, _ = Counter(k for k, _ in pairs).most_common(1)[0]
            raise ValueError(f"the key {twice[:80]!a} stands twice")
        return made

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def number(text: str) -> float:
        if isinf(value := float(text)):
            raise ValueError(f"{text[:80]} is too large for a number")
        return value

    name = path.name
    try:
        text = read_regular(path, CONFIG_BYTES)
        if (found := check_content(name, text, len(text))) is not None:
            return found
        if (parts := text.count(b"{") + text.count(b"[")) > CONFIG_PARTS.value:
            raise LimitError(CONFIG_PARTS, parts)
        value = json.loads(text, object_pairs_hook=strict, parse_constant=refuse, parse_float=number)
        _check(value)
    except LimitError as error:
        return Finding("limit-exceeded", severity, f"it has {error}", file=name, hint=error.hint)
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        hint = f"it is a link to {printable(str(path.readlink()))}; fetch the file again" if path.is_symlink() else None
        return Finding("config-invalid", severity, f"{name} cannot be read: {reason}", file=name, hint=hint)
    if not isinstance(value, dict):
        return Finding("config-invalid", severity, f"{name} is not a JSON object", file=name)
    return value


def _check(value: object) -> None:
    """Check how deep a value nests, and that its strings can be written.

    Raises:
        ValueError: a string has half of a character; LimitError: it nests too deep.
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


def _own_quantisation(config: Mapping[str, Any]) -> object:
    """Return the config's own quantization_config, of the whole or of a section such as ``text_config``; None: none."""
    sections = (v for v in config.values() if isinstance(v, Mapping))
    return next((q for c in (config, *sections) if (q := c.get("quantization_config")) is not None), None)


def _impossible(value: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an ``hf_quant_config.json``; what ``quant_algo`` means is checked with all claims."""
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


def _contradiction(own: object, quantisation: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Report that config.json, which is followed, tells another quantisation than ModelOpt's file."""
    if not isinstance(own, Mapping):
        return ()  # which is refused
    theirs = str(quantisation["quant_algo"]).upper()
    method = str(own.get("quant_method"))
    ours = str(own.get("quant_algo", theirs)).upper() if method.startswith("modelopt") else method
    if ours == theirs:
        return ()
    message = f"it says that the weights are quantised as {theirs}, and config.json says {ours}, which is followed"
    return (Finding("quantization-disagrees", "warning", message, file=QUANTISATION),)
