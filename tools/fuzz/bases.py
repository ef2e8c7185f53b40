"""Sound checkpoints to be damaged, tiny ones kept in memory, and what each loads as on each layout.

There is one of each preset, of each text model that only the tests have a config of, and one in Mistral's own names.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from loadmaster.architectures.llama import FAMILY as LLAMA
from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import InputError
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, build_plan, prove
from loadmaster.synth import PRESETS, Preset, write_tiny
from tests.architectures.test_mistral_names import CONFIG
from tests.architectures.test_text_models import MODELS
from tools.fuzz.shards import INDEX, Array, Draft, unpack

_OWN = replace(LLAMA, spelling=LLAMA.variants[0], variants=())
MADE = {
    **PRESETS,
    **{
        name: Preset(name, {"architectures": [name], "dtype": "bfloat16", **config}, {}, 1, tiny_shards=2)
        for name, config in MODELS.items()
    },
    "mistral-own-names": Preset("mistral-own-names", CONFIG, {}, 1, tiny_shards=2, family=_OWN),
}
"""What is damaged, by name."""

LAYOUTS = (
    ParallelLayout(),
    ParallelLayout(2),
    ParallelLayout(1, 2),
    ParallelLayout(2, 2),
    ParallelLayout(1, 4),
    ParallelLayout(1, 2, enable_expert_parallel=True),
    ParallelLayout(2, 2, enable_expert_parallel=True, num_draft_layers=1),
    ParallelLayout(1, 1, num_draft_layers=1),
    ParallelLayout(3, 1, num_draft_layers=1),
    ParallelLayout(1, 1, data_parallel_size=2),
    ParallelLayout(1, 2, enable_expert_parallel=True, data_parallel_size=2, expert_placement="round_robin"),
    ParallelLayout(1, 3),
)
"""What is drawn from; not each is possible for every model, which is a case as well."""

Print = tuple[str, tuple[int, ...], str]
"""Dtype, shape and SHA-256 of a loaded parameter."""


def prints(tensors: Mapping[str, torch.Tensor]) -> dict[str, Print]:
    """Return what identifies each loaded parameter."""
    return {
        name: (
            str(t.dtype),
            tuple(t.shape),
            hashlib.sha256(t.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest() if t.numel() else "",
        )
        for name, t in tensors.items()
    }


@dataclass(frozen=True)
class Sound:
    """What a sound checkpoint is on one layout: each rank's parameters, and the stored tensors that each is made of."""

    ranks: tuple[Mapping[str, Print], ...]
    made_of: tuple[Mapping[str, frozenset[str]], ...]

    @cached_property
    def read(self) -> frozenset[str]:
        """Every stored tensor that some rank reads."""
        return frozenset().union(*(names for rank in self.made_of for names in rank.values()))


class Base:
    """One model's tiny checkpoint."""

    def __init__(self, preset: str, folder: Path) -> None:
        self.preset, self.folder = preset, folder
        write_tiny(MADE[preset], folder)
        self.shards: dict[str, dict[str, Array]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors = unpack(file.read_bytes())
            assert tensors is not None, f"{preset}: the official package refuses {file.name}"
            self.shards[file.name] = dict(sorted(tensors.items()))
        self.config = json.loads((folder / "config.json").read_text())
        index = folder / INDEX
        self.index = json.loads(index.read_text()) if index.exists() else None
        self.tensors = {name: a for tensors in self.shards.values() for name, a in tensors.items()}
        self._sound: dict[ParallelLayout, Sound | None] = {}

    def draft(self) -> Draft:
        """Return a copy to be damaged."""
        return Draft(
            {f: dict(tensors) for f, tensors in self.shards.items()},
            copy.deepcopy(self.index),
            copy.deepcopy(self.config),
        )

    def sound(self, layout: ParallelLayout) -> Sound | None:
        """Return what it is on a layout; None where the layout is impossible for it."""
        if layout not in self._sound:
            self._sound[layout] = self._load(layout)
        return self._sound[layout]

    def _load(self, layout: ParallelLayout) -> Sound | None:
        try:
            plan = build_plan(open_checkpoint(self.folder), layout)
        except InputError:
            return None
        proof = prove(plan)
        unexpected = [f for f in proof.findings if f.code not in ("family-unchecked", "layout-moved")]
        assert not unexpected, (self.preset, layout, unexpected)
        ranks = range(plan.num_ranks)
        return Sound(
            tuple(prints(load_rank(proof.require_proven(), r, num_readers=1).tensors) for r in ranks),
            tuple(made_of(plan, r) for r in ranks),
        )


def made_of(plan: Plan, rank: int) -> dict[str, frozenset[str]]:
    """Return for each of a rank's parameters the stored tensors that it is made of."""
    derived = plan.rank(rank)
    names = plan.checkpoint.table.names
    found: dict[str, set[str]] = defaultdict(set)
    for batch in derived.groups:
        for param, tensors in zip(batch.params.tolist(), batch.tensors.tolist(), strict=True):
            found[derived.specs[param].name].update(names[t] for t in tensors)
    return {s.name: frozenset(found[s.alias or s.name]) for s in derived.specs}


class Bases:
    """All of them, written when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Base] = {}

    def __getitem__(self, preset: str) -> Base:
        if preset not in self._made:
            self._made[preset] = Base(preset, self.folder / preset)
        return self._made[preset]
