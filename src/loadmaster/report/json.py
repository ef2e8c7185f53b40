"""Turns proofs, failures and checkpoints into the JSON objects that ``--json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from loadmaster.checkpoint import Checkpoint
from loadmaster.checkpoint.lookalike import printable
from loadmaster.errors import InputError, LoadmasterError
from loadmaster.findings import Finding
from loadmaster.plan import ParamSpec
from loadmaster.plan.proof import SCOPE, Proof

NOTHING_CHECKED = {"checked": [], "not_checked": [*SCOPE["checked"], *SCOPE["not_checked"]]}
"""The scope of a failure before there was a plan to check."""


def proof_object(proof: Proof, elapsed_s: float, params: Sequence[ParamSpec] = ()) -> dict[str, Any]:
    """Return the object of a proof, with the requested parameters; sizes are bytes, ``layers`` is half open."""
    plan = proof.plan
    return {
        "proven": proof.proven,
        "scope": SCOPE,
        "findings": finding_objects(proof.findings),
        "waivers": [
            {"reason": w.reason, "num_tensors": w.num_tensors, "bytes": w.num_bytes, "pattern": w.pattern}
            for w in proof.waivers
        ],
        "checkpoint": checkpoint_object(plan.checkpoint),
        "layout": plan.layout.as_json(),
        "target": plan.target.name,
        "ranks": [dataclasses.asdict(r) for r in proof.ranks],
        "params": [
            {"name": s.name, "dtype": s.dtype, "shape": s.shape, "bytes": s.num_bytes, "alias": s.alias} for s in params
        ],
        "plan_hash": plan.hash,
        "elapsed_s": round(elapsed_s, 4),
    }


def finding_objects(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as a list of objects."""
    return [f.as_json() for f in findings]


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's counts."""
    return {
        "num_tensors": len(checkpoint.table),
        "num_files": len(checkpoint.files),
        "payload_bytes": checkpoint.table.payload_bytes,
        "origin": checkpoint.origin.as_json(),
    }


def failure_object(error: LoadmasterError, elapsed_s: float) -> dict[str, Any]:
    """Return the object of a failure, with the keys of `proof_object`; without a proof only the findings are filled in."""
    if isinstance(error, InputError) and (proof := getattr(error, "proof", None)) is not None:
        return proof_object(proof, elapsed_s)
    return {
        "proven": False,
        "scope": NOTHING_CHECKED,
        "findings": finding_objects(findings_of(error)),
        "waivers": [],
        "checkpoint": None,
        "layout": None,
        "target": None,
        "ranks": [],
        "params": [],
        "plan_hash": None,
        "elapsed_s": round(elapsed_s, 4),
        "error": {"type": type(error).__name__, "message": error.message, "hint": error.hint},
    }


def findings_of(error: LoadmasterError) -> tuple[Finding, ...]:
    """Return an error's findings; an input error without findings becomes one."""
    if not isinstance(error, InputError):
        return ()
    if error.findings:
        return error.findings
    return (Finding(error.code, "error", error.message, hint=error.hint),)


def dumps(value: Any) -> str:
    """Return indented JSON."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode()


def architectures(config: Mapping[str, Any]) -> list[str] | None:
    """Return the architectures that a config names, safe to print; None where they are not a list of names.

    >>> architectures({"architectures": ["LlamaForCausalLM"]}), architectures({"architectures": {}})
    (['LlamaForCausalLM'], None)
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return None
    return [printable(n) for n in names]


def inspection_object(checkpoint: Checkpoint, names: list[str] | None) -> dict[str, Any]:
    """Return the object of a checkpoint's contents, with the tensors in ``names``."""
    table = checkpoint.table
    tensors = []
    for name in names or ():
        number = table.ids[name]
        signature = table.signatures[table.signature[number]]
        tensors.append(
            {
                "name": name,
                "dtype": signature.dtype,
                "shape": list(signature.shape),
                "file": checkpoint.files[table.file[number]].name,
                "start": int(table.start[number]),
                "bytes": int(table.nbytes[number]),
            }
        )
    config = checkpoint.config or {}
    return {
        "path": str(checkpoint.path),
        "architectures": architectures(config),
        "checkpoint": checkpoint_object(checkpoint),
        "files": [{"name": f.name, "bytes": f.size} for f in checkpoint.files],
        "findings": finding_objects(checkpoint.findings),
        "tensors": tensors,
    }
