"""Text models that are no presets, and what vLLM 0.33's own loader writes of them, as digests.

One digest tells all layers' parameters of a name and format: ``vllm_0_33_text.json`` has case → parameters → a digest for each
rank of the case, in its order; ``-`` where a rank has none. A parameter with several names has the shortest of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from loadmaster.audit.ranks import Rank, load
from loadmaster.checkpoint import open_checkpoint
from loadmaster.integrations.vllm.direct import Planned
from loadmaster.loader import load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from tests.integrations.vllm import text_around, text_deepseek, text_dense, text_experts, text_recurrent, text_remote
from tests.integrations.vllm.golden import held
from tests.integrations.vllm.text_case import TextCase

TARGET: Final = "vllm-0.33"
FILE: Final = Path(__file__).with_name("vllm_0_33_text.json")
TABLES: Final = (
    text_around.CASES,
    text_deepseek.CASES,
    text_dense.CASES,
    text_experts.CASES,
    text_recurrent.CASES,
    text_remote.CASES,
)
CASES: Final[Mapping[str, TextCase]] = {name: case for table in TABLES for name, case in table.items()}

Digests = dict[str, str]
Params = dict[str, torch.Tensor]


def of_vllm(case: TextCase, path: Path, rank: Rank, load_format: str = "auto", **more: object) -> Params:
    """Return what vLLM makes of a rank's parameters, by the planned name of those that have several.

    Those beside a language model are left out.
    """
    known, built = planned(case, path, rank)[0], load(path, rank, load_format=load_format, **case.arguments, **more)
    names: dict[int, list[str]] = defaultdict(list)
    for name, param in built.model.named_parameters(remove_duplicate=False):
        names[id(param)].append(name)
    called = {same[0]: next((name for name in same if name in known), same[0]) for same in names.values()}
    made = {called.get(name, name): tensor for name, tensor in held(built).items()}
    left = (n for n in made if n in case.beside or is_of_cache(n) or (case.drafts and is_shared(n)))
    return {n: made[n] for n in made.keys() - {*left}}


def is_of_cache(name: str) -> bool:
    """Return whether a parameter is a scale of a quantised KV cache, which no checkpoint here has."""
    return re.search(r"\.attn\.(q|k|v|prob)_scale$", name) is not None


def is_shared(name: str) -> bool:
    """Return whether a draft's parameter is replaced by the model's own on one stage."""
    return name.startswith(("lm_head.", "model.embed_tokens.")) or ".shared_head.head." in name


def planned(case: TextCase, path: Path, rank: Rank) -> tuple[Params, set[str]]:
    """Return what a plan makes of a rank's parameters, and the names of those that are other ones in vLLM."""
    (pp, stages), (tp, cuts) = rank.pp, rank.tp
    layout = ParallelLayout(stages, cuts, enable_expert_parallel=rank.ep, num_draft_layers=int(case.drafts))
    proven, number = _proven(path, layout, case.room.get(str(rank))), pp * cuts + tp
    loaded, here = load_rank(proven, number, num_readers=1), Planned(proven, number, is_draft=case.drafts)
    names: dict[str, list[str]] = defaultdict(list)
    for spec, name in here.params:
        if not (case.drafts and is_shared(name)):
            names[spec.alias or spec.name].append(name)
    made = {min(sorted(same), key=len): loaded.tensors[owner] for owner, same in names.items()}
    return made, {*here.computed, *(name for name in made if case.lost and name.endswith(case.lost))}


@lru_cache(maxsize=1)
def _proven(path: Path, layout: ParallelLayout, expert_sizes: tuple[int, int] | None) -> ProvenPlan:
    """Return the plan of a layout, which ranks that follow one another share."""
    plan = build_plan(open_checkpoint(path), layout, target=TARGET, expert_sizes=expert_sizes)
    return prove(plan).require_proven()


def told(params: Params, computed: set[str] | frozenset[str] = frozenset()) -> Digests:
    """Return the digests of a rank's parameters, by name without numbers and format; of ``computed`` ones, the shapes'."""
    made: dict[str, hashlib._Hash] = defaultdict(hashlib.sha256)
    for name, tensor in sorted(params.items()):
        key = f"{without_numbers(name)} {str(tensor.dtype).removeprefix('torch.')}"
        made[key].update(f"{name} {tuple(tensor.shape)}".encode())
        if name not in computed:
            made[key].update(raw(tensor).numpy().tobytes())
    return {key: digest.hexdigest()[:10] for key, digest in made.items()}


def without_numbers(name: str) -> str:
    """Return a name with the numbers of modules as ``*``."""
    return re.sub(r"(?<=[.])[0-9]+(?=[.])", "*", name)


def joined(ranks: list[Digests]) -> Digests:
    """Return the digests of all ranks of a case as they are kept."""
    keys = sorted({key for rank in ranks for key in rank})
    return {key: " ".join(rank.get(key, "-") for rank in ranks) for key in keys}


def kept() -> dict[str, Digests]:
    """Return what is kept, by case."""
    made: dict[str, Digests] = json.loads(FILE.read_text())
    return made


def keep(made: Mapping[str, Digests]) -> None:
    """Write the digests of cases; those of other cases stay, but for cases that are no more."""
    cases = {name: digests for name, digests in sorted((kept() | dict(made)).items()) if name in CASES}
    FILE.write_text(json.dumps(cases, indent=1) + "\n")


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
