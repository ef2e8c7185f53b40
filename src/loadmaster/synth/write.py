"""Writes a checkpoint's files: shards, index, config, and for tiny ones a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import orjson

from loadmaster.architectures.items import with_suffix
from loadmaster.checkpoint import Signature
from loadmaster.dtypes import num_bytes
from loadmaster.errors import InputError
from loadmaster.formats.bitsandbytes import state_of, write_state
from loadmaster.synth.inventory import Entry, inventory
from loadmaster.synth.presets import Preset
from loadmaster.synth.tokenizer import write_tokenizer

Floats: TypeAlias = npt.NDArray[np.float32]

NUMPY: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}
"""The numpy dtypes of the written dtypes."""

COPY_OF = {"mtp.embed": "embed", "mtp.head": "head"}
"""A draft model's embedding and head are copies of the model's, as published."""

E8M0 = ml_dtypes.float8_e8m0fnu


def write_full_size(preset: Preset, out: Path, *, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the published model with real headers and sparse bodies, which take no disk space and read as zeros.

    Returns:
        ``num_tensors``, ``num_files`` and ``payload_bytes`` of what was written.
    """
    config = preset.config_of(tiny=False) | (overrides or {})
    return _write(preset, out, config, preset.num_shards, body=None)


def write_tiny(
    preset: Preset,
    out: Path,
    *,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
    num_shards: int | None = None,
) -> dict[str, Any]:
    """Write a small model in the real layout: random weights, quantised as published, with a working tokenizer.

    The same seed gives the same bytes. ``overrides`` change single config values.

    Returns:
        ``num_tensors``, ``num_files`` and ``payload_bytes`` of what was written.
    """
    config = preset.config_of(tiny=True) | (overrides or {})
    random = np.random.default_rng(seed)
    pending: dict[str, Floats] = {}
    originals: dict[str | None, bytes] = {}

    def body(entry: Entry) -> bytes:
        if entry.format is None or entry.item is None:
            logical = entry.item.first.name if entry.item else ""
            if (original := COPY_OF.get(logical)) in originals:
                return originals[original]
            values = _random(entry, random).astype(NUMPY[entry.signature.dtype]).tobytes()
            if logical in COPY_OF.values():
                originals[logical] = values
            return values
        if entry.format.name != "fp8_block" or entry.number > 1:
            return _codes(entry, random)
        if entry.number == 1:
            return pending.pop(entry.name).astype(E8M0 if entry.signature.dtype == "F8_E8M0" else np.float32).tobytes()
        block, scale = entry.format.block, entry.format.components[1]
        powers = preset.e8m0 or scale.dtypes == ("F8_E8M0",)
        made = _random(entry, random)
        parts = np.stack(np.split(made, entry.item.groups)) if entry.item.apart else made
        weight, factors = quantise_blocks(parts, (block[0], block[1]), powers=powers)
        pending[with_suffix(entry.name, scale.suffix)] = factors
        return weight.tobytes()

    written = _write(preset, out, config, num_shards or preset.tiny_shards, body)
    write_tokenizer(out, preset.family_of(config).describe(config).values)
    return written


def quantise_blocks(
    values: np.ndarray, block: tuple[int, int], *, powers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Quantise ``values`` ``[…, rows, columns]`` to E4M3 with one F32 factor for each block; the last blocks may be incomplete.

    ``powers``: the factors are powers of two.
    """
    if values.ndim > 2:
        pairs = [quantise_blocks(v, block, powers=powers) for v in values]
        return np.stack([out for out, _ in pairs]), np.stack([scale for _, scale in pairs])
    rows, columns = values.shape
    shape = (-(-rows // block[0]), -(-columns // block[1]))
    scale = np.empty(shape, dtype=np.float32)
    out = np.empty(values.shape, dtype=ml_dtypes.float8_e4m3fn)
    for i in range(shape[0]):
        for j in range(shape[1]):
            at = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            factor = max(float(np.abs(values[at]).max()), 1e-6) / 448.0
            scale[i, j] = 2.0 ** np.ceil(np.log2(factor)) if powers else factor
            out[at] = (values[at] / scale[i, j]).astype(ml_dtypes.float8_e4m3fn)
    return out, scale


def _codes(entry: Entry, random: np.random.Generator) -> bytes:
    """Return random codes of a packed format, or small positive factors, as a quantiser writes them."""
    shape, dtype = entry.signature.shape, entry.signature.dtype
    assert entry.component is not None
    assert entry.item is not None
    if entry.format is not None and entry.component.suffix == state_of(entry.format):
        return write_state(entry.format, entry.format.of)
    if entry.component.waived:
        restated = np.array(entry.item.shape[-2:], dtype=np.int64 if dtype == "I64" else np.int32)
        return np.broadcast_to(restated, shape).tobytes()
    if dtype in NUMPY and entry.number:
        factors = random.uniform(0.5, 1.0, shape)
        return (factors if dtype == "F8_E4M3" else factors / 128).astype(NUMPY[dtype]).tobytes()
    if entry.component.suffix == "g_idx":
        group = entry.format.block[0] if entry.format else 1
        index = np.arange(shape[-1]) // group
        whole = any(g.kind == "whole" for c in (entry.format.components if entry.format else ()) for g in c.grains)
        of_each = [random.permutation(index) if whole else index for _ in range(int(np.prod(shape[:-1])))]
        return np.concatenate(of_each).astype(np.int32).tobytes()
    if "scale" in entry.component.suffix:
        return random.integers(118, 122, shape, dtype=np.uint8).tobytes()  # biased exponents
    if dtype == "F8_E4M3":
        return _random(entry, random).astype(NUMPY[dtype]).tobytes()
    return random.integers(0, 256, Signature(dtype, shape).num_bytes, dtype=np.uint8).tobytes()


def _random(entry: Entry, random: np.random.Generator) -> Floats:
    shape = entry.signature.shape
    draw: Floats = random.standard_normal(shape, dtype=np.float32)
    small = (draw * 0.1).astype(np.float32)
    if entry.item is None:
        return small
    if entry.item.first.spare:
        small[-entry.item.first.spare :] = 0
        return small
    logical = entry.item.first.name
    if len(entry.item.first.shape) >= 2:
        scale = 1.0 if logical == "embed" else float(np.sqrt(shape[-2] if entry.item.is_transposed else shape[-1]))
        return (draw / scale).astype(np.float32)
    return small if "bias" in logical else (1 + small).astype(np.float32)  # the rest are norms


def _write(
    preset: Preset, out: Path, config: dict[str, Any], num_shards: int, body: Callable[[Entry], bytes] | None
) -> dict[str, Any]:
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty", hint="give a folder that does not exist yet")
    out.mkdir(parents=True, exist_ok=True)
    entries = inventory(preset, config)
    payload = sum(e.signature.num_bytes for e in entries)
    weight_map = {}
    shards = _divide(entries, payload, num_shards)
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else preset.shard_name.format(i=i, n=len(shards))
        write_shard(
            out / name,
            [(e.name, e.signature.dtype, e.signature.shape) for e in shard],
            map(body, shard) if body else None,
        )
        weight_map.update(dict.fromkeys((e.name for e in shard), name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": payload}, "weight_map": dict(sorted(weight_map.items()))}
        (out / "model.safetensors.index.json").write_bytes(orjson.dumps(index, option=orjson.OPT_INDENT_2))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return {"num_tensors": len(entries), "num_files": len(shards), "payload_bytes": payload}


def _divide(entries: Sequence[Entry], payload: int, num_shards: int) -> list[list[Entry]]:
    """Divide entries over shards of about equal size, in order; a scale stays in the shard of its weight."""
    shards: list[list[Entry]] = [[] for _ in range(num_shards)]
    done = 0
    for e in entries:
        if e.number == 0:
            at = min(done * num_shards // payload, num_shards - 1)
        shards[at].append(e)
        done += e.signature.num_bytes
    return [s for s in shards if s]


def write_shard(
    path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], bodies: Iterable[bytes] | None
) -> None:
    """Write one safetensors file of tensors (name, dtype, shape); without ``bodies`` the file is sparse."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        size = num_bytes(dtype, prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if bodies is None:
            file.truncate(8 + len(text) + offset)
        else:
            file.writelines(bodies)
