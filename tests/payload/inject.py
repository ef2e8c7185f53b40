"""Changes single elements of a checkpoint's files, byte by byte, and says what is found then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from loadmaster.checkpoint import Checkpoint, open_checkpoint
from loadmaster.findings import Finding
from loadmaster.payload import Verification, survey_payload, verify_payload

NUMPY = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
    "I32": np.int32,
}


def poke(path: Path, tensor: str, change: Callable[[Any], None]) -> Checkpoint:
    """Let ``change`` alter a tensor's values in place, in its file; return the checkpoint as it was opened before."""
    checkpoint = open_checkpoint(path)
    table = checkpoint.table
    number = table.ids[tensor]
    signature = table.signatures[table.signature[number]]
    with (path / checkpoint.files[table.file[number]].name).open("r+b") as file:
        file.seek(int(table.start[number]))
        data = bytearray(file.read(int(table.nbytes[number])))
        change(np.frombuffer(data, NUMPY[signature.dtype]).reshape(signature.shape))
        file.seek(int(table.start[number]))
        file.write(data)
    return checkpoint


def put(path: Path, tensor: str, place: tuple[int, ...], value: float) -> None:
    """Set one element."""

    def change(values: Any) -> None:
        values[place] = value

    poke(path, tensor, change)


def clear(path: Path, tensor: str) -> None:
    """Set all elements to zero."""
    poke(path, tensor, lambda values: values.fill(0))


def values_of(path: Path, tensor: str) -> Any:
    found: list[Any] = []
    poke(path, tensor, lambda values: found.append(values.copy()))
    return found[0]


def copy(path: Path, source: str, target: str) -> None:
    """Give one tensor the values of another."""
    values = values_of(path, source)
    poke(path, target, lambda to: to.__setitem__(..., values))


def verify(path: Path, **options: Any) -> Verification:
    return verify_payload(survey_payload(open_checkpoint(path), **options), num_threads=2)


def findings(path: Path, **options: Any) -> list[Finding]:
    return list(verify(path, **options).findings)


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]
