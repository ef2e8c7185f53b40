"""Loads a family's tiny checkpoints and compares every parameter's bytes with the stored tensors (needs torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadmaster.architectures.faults import spelling_labels
from loadmaster.architectures.schema import Family
from loadmaster.errors import LoadmasterError
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import prove
from loadmaster.testing.expected import Expected
from loadmaster.testing.faults import expect_none
from loadmaster.testing.plans import layouts_of, name_of, try_plan, write_checkpoint
from loadmaster.testing.tables import check_tables

if TYPE_CHECKING:
    import torch


def check_loading(
    family: Family, config: Mapping[str, Any], folder: Path, *, layouts: Sequence[ParallelLayout] | None = None
) -> int:
    """Load every rank of every layout, and compare it byte by byte with the stored tensors.

    The expected bytes are cut from whole stored tensors, by the tables but without the planner. Computed parameters (decoded,
    cast) are not compared. Returns how many were compared.

    Raises:
        FamilyFaults: the tables are wrong, a parameter differs, or none could be compared.
    """
    check_tables(family, config)
    compared: list[str] = []
    expect_none(family.name, _faults(family, config, folder, layouts, compared))
    if not compared:
        expect_none(family.name, ["no parameter is a copy of stored bytes, so none could be compared"])
    return len(compared)


def _faults(
    family: Family,
    config: Mapping[str, Any],
    folder: Path,
    layouts: Sequence[ParallelLayout] | None,
    compared: list[str],
) -> Iterator[str]:
    from loadmaster.loader import load_rank

    for number, label in enumerate(spelling_labels(family)):
        checkpoint = write_checkpoint(family, config, folder / label, spelling=number)
        for layout in layouts or layouts_of(family, config):
            plan = try_plan(checkpoint, layout)
            if isinstance(plan, str):
                yield f"{label}, {name_of(layout)}: {plan}"
                continue
            proof = prove(plan)
            if not proof.proven:
                yield f"{label}, {name_of(layout)}: {proof.refusal().message}"
                continue
            for rank in range(plan.num_ranks):
                try:
                    loaded = load_rank(proof.require_proven(), rank)
                except LoadmasterError as error:
                    yield f"{label}, {name_of(layout)}: {error.message}"
                    continue
                expected = Expected(plan, rank, family.spellings[number], family.draft_spelling(number)).arrays()
                for name, array in expected.items():
                    compared.append(name)
                    where = f"{label}, {name_of(layout)}: {name} on rank {rank}"
                    if name not in loaded.tensors:
                        yield f"{where} is not loaded"
                    elif difference := _difference(_bytes(loaded.tensors[name]), array.tobytes()):
                        yield f"{where} {difference}"


def _bytes(tensor: torch.Tensor) -> bytes:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _difference(loaded: bytes, stored: bytes) -> str | None:
    if len(loaded) != len(stored):
        return f"has {len(loaded):,} bytes, but the stored tensors give {len(stored):,}"
    if loaded != stored:
        first = next(i for i, (a, b) in enumerate(zip(loaded, stored, strict=True)) if a != b)
        return f"differs from the stored bytes, first at byte {first:,} of {len(stored):,}"
    return None
