"""Changes that give a sound checkpoint one defect each, as found in the field. Applying one needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loadmaster.testing.damaged import INDEX, DamagedCheckpoint

if TYPE_CHECKING:
    import torch

KINDS: Final[dict[str, str]] = {
    "tensor-missing": "a tensor is missing",
    "scale-missing": "a scale is missing",
    "expert-missing": "an expert is missing",
    "layer-missing": "a layer is missing",
    "draft-missing": "the MTP layer is missing, or part of it",
    "tensor-unknown": "a tensor that the model does not have",
    "tensor-renamed": "tensors under other names",
    "shape-small": "a tensor is smaller than the config says",
    "shape-large": "a tensor is larger than the config says",
    "transposed": "a tensor is stored transposed",
    "dtype": "a tensor is stored in another number format",
    "precision": "the config says quantised and the headers do not, or the reverse",
    "scale-stray": "a scale beside a weight that is not quantised",
    "scale-grid": "scales of another grid than the config says",
    "block-cut": "a layout, or a fusion, that cuts inside a quantisation block",
    "shard-broken": "a shard is truncated or not a shard",
    "shard-missing": "a shard is missing",
    "shard-stale": "a shard that does not belong in the folder",
    "index-wrong": "an index that contradicts the headers",
    "tied-head": "a head stored otherwise than the config's tie says",
    "config-size": "a config of another size than the checkpoint",
}
"""Kinds of defects, in the order of the report."""

Change = Callable[[DamagedCheckpoint], Sequence[str]]


@dataclass(frozen=True)
class Damage:
    """One defect. ``change`` applies it, and returns the names of tensors, files and config keys that an error should name.

    ``harmless``: the checkpoint still holds the same model, so loading it as the sound one is correct. ``changes`` is false
    if the checkpoint is not changed: the defect is in its sizes and the layout.
    """

    kind: str
    what: str
    change: Change
    harmless: bool = False
    changes: bool = True


def nothing(kind: str, what: str) -> Damage:
    """Return a defect of the layout or of sizes only: the checkpoint is sound, but may be refused."""
    return Damage(kind, what, lambda m: ("model.layers.",), changes=False)


def missing(pattern: str, what: str, kind: str = "tensor-missing", *concerned: str, harmless: bool = False) -> Damage:
    """Return a defect: all tensors that match are left out. ``concerned`` are more names for them."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        names = m.names(pattern)
        m.drop(pattern)
        return (*names, *concerned)

    return Damage(kind, what, change, harmless)


def added(pattern: str, new: str, what: str, *, harmless: bool = False) -> Damage:
    """Return a defect: the tensors that match are stored a second time, under other names."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        before = set(m.names())
        m.copy(pattern, new)
        return sorted(set(m.names()) - before)

    return Damage("tensor-unknown", what, change, harmless)


def renamed(pattern: str, new: str, what: str) -> Damage:
    """Return a defect: tensors have other names."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        before = set(m.names())
        m.rename(pattern, new)
        return sorted(before ^ set(m.names()))

    return Damage("tensor-renamed", what, change)


def changed(
    kind: str, pattern: str, make: Callable[[torch.Tensor], torch.Tensor], what: str, *, harmless: bool = False
) -> Damage:
    """Return a defect: the tensors that match are changed."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        m.change(pattern, make)
        return m.names(pattern)

    return Damage(kind, what, change, harmless)


def cast(kind: str, pattern: str, dtype: str, what: str, *, harmless: bool = False) -> Damage:
    """Return a defect: the tensors that match are stored in another of torch's number formats."""

    def make(t: torch.Tensor) -> torch.Tensor:
        import torch

        return t.float().to(getattr(torch, dtype))

    return changed(kind, pattern, make, what, harmless=harmless)


def dequantised(pattern: str, what: str, *, scales: bool, harmless: bool = False) -> Damage:
    """Return a defect: FP8 weights that match are stored as BF16; their scales stay (``scales``) or are left out."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        names = [n.removesuffix("_scale_inv") for n in m.names(rf"{pattern}\.weight_scale_inv$")]
        grids = {n: m.tensor(f"{n}_scale_inv") for n in names}

        def plain(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
            if name in grids:
                return {name: _decoded(tensor, grids[name])}
            return {} if name.removesuffix("_scale_inv") in grids and not scales else {name: tensor}

        m.each("", plain)
        return names

    return Damage("scale-stray" if scales else "precision", what, change, harmless)


def _decoded(codes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    rows, columns = codes.shape
    factors = grid.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (codes.float() * factors).bfloat16()


def config(kind: str, what: str, *concerned: str, harmless: bool = False, **values: Any) -> Damage:
    """Return a defect: values of the config are changed; ``...`` leaves one out. ``concerned`` names what becomes wrong."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        m.config(**values)
        return (*concerned, *values)

    return Damage(kind, what, change, harmless)


def quantization(kind: str, what: str, *concerned: str, **values: Any) -> Damage:
    """Return a defect: values of ``quantization_config`` are changed."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        m.quantization(**values)
        return (*concerned, *values)

    return Damage(kind, what, change)


def both(kind: str, what: str, *parts: Damage) -> Damage:
    """Return several changes as one defect."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        return tuple(dict.fromkeys(name for d in parts for name in d.change(m)))

    return Damage(kind, what, change)


def weight(layer: str, module: str) -> Damage:
    """Return a defect: a weight of a layer is missing."""
    name = module.replace("\\", "")
    return missing(rf"{layer}{module}\.weight$", f"{name}.weight of a layer is missing")


def scale(layer: str, module: str, suffix: str = "weight_scale_inv") -> Damage:
    """Return a defect: a scale, or another companion of a weight, is missing."""
    name = module.replace("\\", "")
    return missing(rf"{layer}{module}\.{suffix}$", f"the {suffix} of {name} is missing", "scale-missing")


# Changes of a tensor -------------------------------------------------------------------------------------------------


def half_rows(t: torch.Tensor) -> torch.Tensor:
    """Return the first half of a tensor's rows."""
    return t[: t.shape[0] // 2]


def half_columns(t: torch.Tensor) -> torch.Tensor:
    """Return the first half of its columns."""
    return t[:, : t.shape[1] // 2]


def double_rows(t: torch.Tensor) -> torch.Tensor:
    """Return it twice, one under the other."""
    return t.repeat(2, *[1] * (t.ndim - 1))


def transposed(t: torch.Tensor) -> torch.Tensor:
    """Return its transpose."""
    return t.t()


# Files ----------------------------------------------------------------------------------------------------------------


def shards(path: Path) -> list[Path]:
    """Return a checkpoint's shards, in order."""
    return sorted(path.glob("model*.safetensors"))


def unindexed(damage: Damage) -> Damage:
    """Return the same defect in a checkpoint without an index."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        names = damage.change(m)
        (m.path / INDEX).unlink()
        return names

    return Damage(damage.kind, f"{damage.what}; there is no index", change, damage.harmless)


def lost_shard(number: int) -> Damage:
    """Return a defect: a shard is missing."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        shard = shards(m.path)[number]
        names = list(_indexed(m, shard.name))
        shard.unlink()
        return [shard.name, *names]

    return Damage("shard-missing", f"shard {number + 1} is missing", change)


def rewritten_shard(number: int, make: Callable[[bytes], bytes], what: str) -> Damage:
    """Return a defect: a shard has other bytes."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        shard = shards(m.path)[number]
        shard.write_bytes(make(shard.read_bytes()))
        return (shard.name,)

    return Damage("shard-broken", what, change)


def stale_shard(file: str, pattern: str, what: str, *, harmless: bool = False) -> Damage:
    """Return a defect: another file in the folder has older values of the tensors that match; the index does not list it."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        _write_stale(m, file, pattern)
        return (file, *m.names(pattern))

    return Damage("shard-stale", what, change, harmless)


def twice(pattern: str, what: str) -> Damage:
    """Return a defect: the last shard holds older values of tensors that the index gives to the first."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        from safetensors.torch import load_file, save_file

        last, index = shards(m.path)[-1], (m.path / INDEX).read_bytes()
        names = [n for n in m.names(pattern) if n in _indexed(m, shards(m.path)[0].name)]
        assert names, f"nothing in the first shard matches {pattern}"
        first = load_file(shards(m.path)[0])
        save_file(load_file(last) | {n: first[n] * 2 for n in names}, last, metadata={"format": "pt"})
        (m.path / INDEX).write_bytes(index)
        return (last.name, *names)

    return Damage("index-wrong", what, change)


def index(make: Callable[[dict[str, str]], Sequence[str]], what: str, *, harmless: bool = False) -> Damage:
    """Return a defect of the index alone; ``make`` changes its map of tensors to files and returns what it changed."""

    def change(m: DamagedCheckpoint) -> Sequence[str]:
        weight_map = json.loads((m.path / INDEX).read_text())["weight_map"]
        names = make(weight_map)
        (m.path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return names

    return Damage("index-wrong", what, change, harmless)


def forget_shard(weight_map: dict[str, str]) -> Sequence[str]:
    """Remove the last shard from an index."""
    file = max(weight_map.values())
    names = [n for n, f in weight_map.items() if f == file]
    for name in names:
        del weight_map[name]
    return [file, *names]


def forget_tensor(weight_map: dict[str, str]) -> Sequence[str]:
    """Remove one tensor from an index."""
    name = next(n for n in weight_map if n.endswith("o_proj.weight"))
    del weight_map[name]
    return [name]


def _indexed(m: DamagedCheckpoint, file: str) -> tuple[str, ...]:
    weight_map: dict[str, str] = json.loads((m.path / INDEX).read_text())["weight_map"]
    return tuple(n for n, f in weight_map.items() if f == file)


def _write_stale(m: DamagedCheckpoint, file: str, pattern: str) -> None:
    import re

    from safetensors.torch import load_file, save_file

    tensors = {n: t for shard in shards(m.path) for n, t in load_file(shard).items() if re.search(pattern, n)}
    assert tensors, f"nothing matches {pattern}"
    save_file({n: t * 2 for n, t in tensors.items()}, m.path / file, metadata={"format": "pt"})
