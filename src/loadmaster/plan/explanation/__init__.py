"""Explains one name of a plan: what a parameter is computed from and where it lives, who reads a stored tensor.

    explanation = explain(plan, "layers.3.self_attn.fused_qkv_a_proj.weight")
    print(explanation.param.expression)

Everything is derived from the plan that is loaded, never from a second description. `loadmaster.report` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.arguments import expect
from loadmaster.errors import ArgumentError
from loadmaster.plan.explanation.names import nearest, param_names
from loadmaster.plan.explanation.params import ExplainedParam, ParamShare, PieceReads, TensorRange, explain_param
from loadmaster.plan.explanation.tensors import ExplainedTensor, Fate, TensorUse, explain_tensor
from loadmaster.plan.plan import Plan

__all__ = [
    "ExplainedParam",
    "ExplainedTensor",
    "Explanation",
    "Fate",
    "ParamShare",
    "PieceReads",
    "TensorRange",
    "TensorUse",
    "explain",
    "explain_param",
    "explain_tensor",
    "param_names",
]


@dataclass(frozen=True)
class Explanation:
    """What a name means in a plan: a parameter, a stored tensor, or both (some engines keep the checkpoint's names)."""

    name: str
    param: ExplainedParam | None
    tensor: ExplainedTensor | None


def explain(plan: Plan, name: str) -> Explanation:
    """Explain the parameter or the stored tensor that is called ``name``.

    Raises:
        ArgumentError: neither exists; the hint has the nearest names.
    """
    expect("plan", plan, Plan, "a Plan, as build_plan returns")
    expect("name", name, str, "the name of a parameter or of a stored tensor")
    param, tensor = explain_param(plan, name), explain_tensor(plan, name)
    if param is None and tensor is None:
        near = nearest(plan, name)
        hint = (
            f"nearest: {', '.join(near)}"
            if near
            else "`loadmaster plan --params RANK` lists parameters, `loadmaster inspect --match TEXT` stored tensors"
        )
        raise ArgumentError(f"{name!r} is neither a parameter of {plan.target.name} nor a stored tensor", hint=hint)
    return Explanation(name, param, tensor)
