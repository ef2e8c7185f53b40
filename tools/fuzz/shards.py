"""A checkpoint in memory, to be damaged and written out: tensors, index and config, and bytes where structure ends.

Files are written and read here without any code of the package, so that what it says of them can be judged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

INDEX = "model.safetensors.index.json"

NUMPY: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
"""Number formats that values are converted between."""

BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "BF16": 16, "F16": 16, "I16": 16}
BITS |= {"U16": 16, "F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64}


@dataclass(frozen=True)
class Array:
    """One stored tensor, with its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape, as a header says them."""
        return self.dtype, self.shape

    def words(self) -> npt.NDArray[Any]:
        """Return its elements as unsigned words of their width, in its shape."""
        return np.frombuffer(self.data, f"u{BITS[self.dtype] // 8}").reshape(self.shape)

    def converted(self, dtype: str) -> Array | None:
        """Return the same values in another format; None where either is no float."""
        if self.dtype not in NUMPY or dtype not in NUMPY:
            return None
        with np.errstate(all="ignore"):
            values = np.frombuffer(self.data, NUMPY[self.dtype]).astype(np.float32).astype(NUMPY[dtype])
        return Array(dtype, self.shape, values.tobytes())

    def with_words(self, words: npt.NDArray[Any]) -> Array:
        """Return a tensor of the same dtype that holds ``words``."""
        return Array(self.dtype, words.shape, np.ascontiguousarray(words).tobytes())


def pack(tensors: dict[str, Array], metadata: dict[str, str] | None = None, padding: int = 0) -> bytes:
    """Return the safetensors file of ``tensors``, in their order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, a in tensors.items():
        header[name] = {"dtype": a.dtype, "shape": list(a.shape), "data_offsets": [at, at + len(a.data)]}
        at += len(a.data)
    text = json.dumps(header).encode() + b" " * padding
    return b"".join((len(text).to_bytes(8, "little"), text, *(a.data for a in tensors.values())))


def unpack(content: bytes) -> dict[str, Array] | None:
    """Return the tensors of a safetensors file as the official package reads them; None where it refuses."""
    try:
        found = deserialize(content)  # type: ignore[no-untyped-call]
        return {name: Array(v["dtype"], tuple(v["shape"]), bytes(v["data"])) for name, v in found}
    except (SafetensorError, OverflowError, ValueError):
        return None


@dataclass
class Draft:
    """A checkpoint about to be written. ``changed`` are the shards to write anew; the others stay those of the base.

    ``rewrites`` act on the bytes of whole files, last of all; None removes the file.
    """

    shards: dict[str, dict[str, Array]]
    index: Any
    config: Any
    changed: set[str] = field(default_factory=set)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)
    rewrites: list[tuple[str, Callable[[bytes], bytes | None]]] = field(default_factory=list)

    def places(self) -> list[tuple[str, str]]:
        """Return (file, tensor) of every tensor, in order."""
        return [(file, name) for file, tensors in self.shards.items() for name in tensors]

    def put(self, file: str, name: str, array: Array | None, *, follow: bool = True) -> None:
        """Set or remove (None) one tensor; the index follows where there is one."""
        self.changed.add(file)
        if array is None:
            self.shards[file].pop(name)
        else:
            self.shards[file][name] = array
        weight_map = self.index.get("weight_map") if isinstance(self.index, dict) else None
        if follow and isinstance(weight_map, dict):
            elsewhere = [f for f, tensors in self.shards.items() if name in tensors]
            if elsewhere:
                weight_map[name] = elsewhere[0]
            else:
                weight_map.pop(name, None)

    def write(self, out: Path, base: Path) -> dict[str, bytes]:
        """Write the folder ``out``; unchanged shards are links to those in ``base``. Return the contents written anew."""
        contents: dict[str, bytes | None] = {
            file: pack(self.shards[file], self.metadata.get(file, {"format": "pt"}), self.padding.get(file, 0))
            for file in sorted(self.changed)
        }
        contents["config.json"] = json.dumps(self.config).encode()
        if self.index is not None:
            contents[INDEX] = json.dumps(self.index).encode()
        for file, rewrite in self.rewrites:
            current = contents[file] if file in contents else (base / file).read_bytes()
            contents[file] = None if current is None else rewrite(current)
        out.mkdir()
        for file in self.shards:
            if file not in contents:
                os.link(base / file, out / file)
        written = {file: content for file, content in contents.items() if content is not None}
        for file, content in written.items():
            (out / file).write_bytes(content)
        return written


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of whole-byte elements."""
    return BITS[dtype] // 8 * prod(shape)
