"""Loadmaster: put any checkpoint on any parallel layout, proven before launch. Then run it.

    from loadmaster import ParallelLayout, build_plan, load_rank, open_checkpoint, prove

    proof = prove(build_plan(open_checkpoint(path), ParallelLayout(pipeline_parallel_size=8)))
    loaded = load_rank(proof.require_proven(), rank=0)

What ``__all__`` names is the library: it is imported from its room when it is first asked for, so that ``import
loadmaster`` costs nothing and planning never meets torch. Everything else may change from one version to the next.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "Division",
    "Engine",
    "Explanation",
    "FamilyError",
    "Finding",
    "Grid",
    "InputError",
    "LayoutError",
    "LoadError",
    "LoadReport",
    "LoadedRank",
    "LoadmasterError",
    "NeededTensor",
    "ParallelLayout",
    "ParamSpec",
    "Plan",
    "PlanError",
    "Proof",
    "ProvenPlan",
    "RankFigures",
    "RankPlan",
    "Receiver",
    "RequestError",
    "Rows",
    "RunError",
    "SamplingParams",
    "Tokenizer",
    "UnsupportedError",
    "build_plan",
    "explain",
    "fetch_model",
    "load_rank",
    "needed",
    "open_checkpoint",
    "open_model",
    "prove",
    "resolve_model",
    "shard_ranges",
]

if TYPE_CHECKING:
    from loadmaster.checkpoint import Checkpoint, fetch_model, open_checkpoint, open_model, resolve_model
    from loadmaster.engine import Engine, Tokenizer
    from loadmaster.errors import (
        ArgumentError,
        CheckpointError,
        ConfigError,
        FamilyError,
        InputError,
        LayoutError,
        LoadError,
        LoadmasterError,
        PlanError,
        RequestError,
        RunError,
        UnsupportedError,
    )
    from loadmaster.findings import Finding
    from loadmaster.loader import LoadedRank, LoadReport, Receiver, load_rank
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import (
        Division,
        Grid,
        NeededTensor,
        ParamSpec,
        Plan,
        Proof,
        ProvenPlan,
        RankFigures,
        RankPlan,
        Rows,
        build_plan,
        needed,
        prove,
        shard_ranges,
    )
    from loadmaster.plan.explanation import Explanation, explain
    from loadmaster.workers import SamplingParams
else:
    ROOMS = {
        "checkpoint": ("Checkpoint", "open_checkpoint", "open_model", "resolve_model", "fetch_model"),
        "parallel": ("ParallelLayout",),
        "plan": (
            "Plan",
            "build_plan",
            "Proof",
            "prove",
            "ProvenPlan",
            "RankFigures",
            "RankPlan",
            "ParamSpec",
            "Division",
            "Rows",
            "Grid",
            "NeededTensor",
            "needed",
            "shard_ranges",
        ),
        "plan.explanation": ("explain", "Explanation"),
        "findings": ("Finding",),
        "loader": ("load_rank", "LoadedRank", "LoadReport", "Receiver"),
        "engine": ("Engine", "Tokenizer"),
        "workers": ("SamplingParams",),
        "errors": (
            "LoadmasterError",
            "InputError",
            "CheckpointError",
            "ConfigError",
            "FamilyError",
            "LayoutError",
            "PlanError",
            "UnsupportedError",
            "LoadError",
            "RunError",
            "RequestError",
            "ArgumentError",
        ),
    }
    """Room → the public names that live there, in the order in which they are documented."""

    def __getattr__(name: str) -> object:
        room = next((room for room, names in ROOMS.items() if name in names), None)
        if room is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{room}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
