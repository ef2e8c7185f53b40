"""Checksums of loaded parameters, computed on the device that holds them, and the manifest of a plan's checksums.

A checksum is the sum of a parameter's 64-bit words, each times its own weight, modulo 2^64. It detects changed bytes and words
that changed places; it does not protect against an attacker. On a GPU it costs four passes over device memory, a few
percent of the time to load the bytes. The result is the same on every device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import torch

from loadmaster.errors import LoadError
from loadmaster.loader.report import LoadedRank
from loadmaster.plan import Plan

_ROW: Final = 2**20
"""Words that share the weights of a row: 8 MiB."""
_ROWS: Final = 8
_MASK: Final = 2**64 - 1


def _weights(first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return odd numbers that look random: splitmix64 of the positions (Steele, Lea and Flood, 2014)."""
    z = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


@cache
def _row_weights(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_weights(0, _ROW).view(np.int64)).to(device)


def checksum(tensor: torch.Tensor) -> int:
    """Return the checksum of a tensor's bytes, below 2^64.

    >>> checksum(torch.zeros(3)), checksum(torch.tensor([1, 0])) == checksum(torch.tensor([0, 1]))
    (0, False)
    """
    return _combined(_row_sums(tensor).tolist())


def _row_sums(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row, on the tensor's device: nothing waits for it yet."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.numel() % 8 or flat.storage_offset() * flat.element_size() % 8:
        whole = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device=flat.device)
        whole[: flat.numel()] = flat
        flat = whole
    words = flat.view(torch.int64)
    weights = _row_weights(words.device)
    full = len(words) // _ROW * _ROW
    sums = [(rows * weights).sum(dim=1) for rows in words[:full].view(-1, _ROW).split(_ROWS)] if full else []
    rest = words[full:]
    return torch.cat([*sums, (rest * weights[: len(rest)]).sum(dim=0, keepdim=True)])


def _combined(sums: list[int]) -> int:
    factors = _weights(_ROW, len(sums)).tolist()
    total: int = sum(s * f for s, f in zip(sums, factors, strict=True))
    return total & _MASK


def checksums(loaded: LoadedRank) -> dict[str, int]:
    """Return the checksum of every parameter of a rank by name, aliases left out."""
    sums = {s.name: _row_sums(loaded.tensors[s.name]) for s in loaded.specs if s.alias is None}
    return {name: _combined(each.tolist()) for name, each in sums.items()}


class Manifest:
    """The checksums of a plan's ranks, in a file. The first load of a rank writes them; later loads are compared with them."""

    def __init__(self, plan: Plan, path: Path | None = None) -> None:
        self._hash = plan.hash
        self.path = path or _cache_folder() / f"{plan.hash}.json"

    def check(self, rank: int, found: Mapping[str, int]) -> bool:
        """Compare a rank's checksums with the manifest, or write them if it has none. Return whether it had them.

        Raises:
            LoadError: a parameter has another checksum; names rank and parameters. Or the file is not a manifest of this plan.
        """
        ranks = self._read()
        known = ranks.get(str(rank))
        if known is None:
            self._write({**ranks, str(rank): {name: f"{value:016x}" for name, value in found.items()}})
            return False
        wrong = [name for name, value in found.items() if known.get(name) != f"{value:016x}"]
        if wrong or known.keys() != found.keys():
            shown = ", ".join((wrong or sorted(known.keys() ^ found.keys()))[:5])
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise LoadError(
                f"rank {rank}: checksums differ from {self.path}: {shown}{more}",
                hint="the files, the memory or the link changed bytes; `loadmaster verify` reads the files. "
                "If the checkpoint was changed on purpose, remove the manifest",
            )
        return True

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            value: Any = orjson.loads(text)
            ranks: dict[str, dict[str, str]] = value["ranks"]
            if value["plan_hash"] != self._hash or not all(isinstance(r, dict) for r in ranks.values()):
                raise ValueError("it is of another plan")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{self.path} is not a manifest of this plan: {error}", hint="remove it") from error
        return ranks

    def _write(self, ranks: Mapping[str, Mapping[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_bytes(orjson.dumps({"plan_hash": self._hash, "ranks": ranks}))
        beside.replace(self.path)


def _cache_folder() -> Path:
    """Return ``manifests`` in the user's cache of this program (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loadmaster" / "manifests"
