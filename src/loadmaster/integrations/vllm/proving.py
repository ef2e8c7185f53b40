"""The proof of a rank's plan for vLLM's parameters: before the model is built, and again with what its kernels add.

Certain defects are refused, and what vLLM may judge differently is not (`Unfit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import torch

from loadmaster.architectures.targets import newest_target
from loadmaster.checkpoint import Checkpoint
from loadmaster.errors import InputError, LayoutError, PlanError
from loadmaster.findings import Finding, errors
from loadmaster.integrations.vllm.direct import Planned, Unfit
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan, ProvenPlan, WaiverRequest, build_plan, prove
from loadmaster.torch_dtypes import TORCH

DEFECTS: Final = frozenset({"layer-missing", "expert-incomplete", "tensor-missing", "scale-missing", "shape-mismatch"})
"""Findings that are refused if there are no others: no model of vLLM loads such a checkpoint correctly."""


def prove_layout(
    checkpoint: Checkpoint,
    layout: ParallelLayout,
    dtype: torch.dtype,
    waive: Sequence[WaiverRequest] = (),
    *,
    target: str | None = None,
    expert_sizes: tuple[int, int] | None = None,
) -> ProvenPlan:
    """Return the proven plan of vLLM's parameters; ``waive`` requests waivers, ``target`` names a version of vLLM.

    ``expert_sizes`` are those of `build_plan`.

    Raises:
        Unfit: nothing can be planned, or vLLM may judge a finding differently.
        PlanError: the checkpoint is certainly defective.
    """
    names = {torch_dtype: name for name, torch_dtype in TORCH.items()}
    try:
        plan = build_plan(
            checkpoint,
            layout,
            dtype=names[dtype],
            target=target or newest_target("vllm"),
            waive=waive,
            expert_sizes=expert_sizes,
        )
        proof = prove(plan)
    except InputError as error:
        if error.code == "layout-cut":
            raise _impossible(error, checkpoint.path) from error
        raise Unfit(error.message) from error
    failed = errors(proof.findings)
    if doubtful := next((f for f in failed if not _is_defect(f)), None):
        raise Unfit(f"{doubtful.code}: {doubtful.summary}")
    if failed and layout.num_draft_layers:
        raise Unfit(f"{failed[0].code}: {failed[0].summary}")  # a draft model's checkpoint may have nothing else
    if failed and (strays := _num_strays(proof.plan)):
        # vLLM may rename them
        raise Unfit(f"{failed[0].code}: {failed[0].summary}; and no parameter needs {strays:,} stored tensors")
    if failed:
        raise PlanError(
            listed(f"{checkpoint.path}: the plan is not proven; nothing was allocated", failed),
            findings=failed,
            hint='`loadmaster plan --engine vllm` reports the same; {"direct": false} loads with vLLM\'s own loader',
        )
    return proof.require_proven()


def with_room(planned: Planned, expert_sizes: tuple[int, int] | None) -> Planned:
    """Return the plan with the sizes of a built model's experts, which are known only then: zeros follow those planned.

    Raises:
        Unfit: zeros cannot follow in the format of the experts.
    """
    if expert_sizes is None:
        return planned
    plan = planned.plan
    dtype = TORCH[plan.explicit_dtype or plan.dtype]
    proven = prove_layout(
        plan.checkpoint, plan.layout, dtype, plan.waive, target=plan.target.name, expert_sizes=expert_sizes
    )
    return Planned(proven, planned.rank, planned.is_draft)


def _impossible(error: InputError, path: Path) -> LayoutError:
    """Return the refusal of a layout whose stages begin where vLLM does not pass on what they need: it would not notice."""
    hint = (error.hint or "").replace("--layer-partition ", "VLLM_PP_LAYER_PARTITION=")
    return LayoutError(f"{path}: {error.message}; nothing was allocated", hint=hint, code=error.code)


def _num_strays(plan: Plan) -> int:
    """Return the number of stored tensors that are neither needed nor waived."""
    bound = (ids.reshape(-1).tolist() for c in plan.all_classes for ids in c.ids.values())
    used = set(chain.from_iterable(bound)) - {-1}
    waived = sum(w.num_tensors for w in plan.waivers if not w.partly)
    return len(plan.checkpoint.table) - len(used) - waived


def _is_defect(f: Finding) -> bool:
    """Whether it is a defect for vLLM too. Not for biases: which config keys decide on them differs by model."""
    return f.code in DEFECTS and not (f.tensor or "").endswith("bias")


def listed(first: str, findings: Iterable[Finding]) -> str:
    """Return a message of several lines: a sentence, then each finding as ``loadmaster plan`` prints it."""
    lines = [first]
    for f in findings:
        lines += ["", f"  {f.code}  {f.summary}", *([f"  hint: {f.hint}"] if f.hint else [])]
    return "\n".join(lines)
