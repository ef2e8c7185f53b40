"""Compares how tensors are divided with the tensor-parallel and expert-parallel plans of transformers.

A configuration class of transformers says how tensor-parallel ranks divide its modules, ``base_model_tp_plan``, and how
whole experts are distributed, ``base_model_ep_plan``. The plans do not name every module, and some styles do not say how the
weight must be cut (an output that is gathered again). Tensors that could not be compared are listed with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loadmaster.architectures.faults import kinds_in_use
from loadmaster.architectures.schema import Family, Tensor
from loadmaster.architectures.spelling import Packed
from loadmaster.testing.faults import expect_none
from loadmaster.testing.modelling import class_of
from loadmaster.testing.tables import check_tables

OUT: Final = "divided along its out dim"
IN: Final = "divided along its in dim"
WHOLE: Final = "held whole by every rank"
DISTRIBUTED: Final = "its plan only says that whole experts are distributed"
ANY: Final = "its output is gathered again, so another cut can also be right"

STYLES: Final[Mapping[str, str]] = {
    "colwise": OUT,
    "packed_colwise": OUT,
    "local_colwise": OUT,
    "colwise_gather_output": ANY,
    "colwise_rep": ANY,  # its name before transformers 5
    "rowwise": IN,
    "packed_rowwise": IN,
    "local_rowwise": IN,
    "local_packed_rowwise": IN,
    "rowwise_split_input": IN,
    "rowwise_rep": IN,
    "embedding_rowwise": OUT,  # rows of the vocabulary
    "embedding_colwise": IN,
    "replicated_with_grad_allreduce": WHOLE,
    "replicate": WHOLE,
    "mla_kv_a_proj": WHOLE,
}
"""Style in transformers' plan → how it divides a weight [out, in]."""

OF_EXPERTS: Final = ("grouped_gemm",)
"""Styles in the expert-parallel plan that distribute whole experts: the weight is a stack of them."""

OF_MODULES: Final = (
    *("moe_tp_experts", "moe_identity_expert", "ep_dispatch_experts", "ep_router"),
    *("all_reduce", "gather", "local", "sequence_parallel"),
)
"""Styles about a module's inputs and outputs, not about its weight."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of comparing with transformers' plans. ``tensors`` are logical names that agree, ``left`` those that could
    not be compared, with the reason.
    """

    tensors: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        """Return the counts, and a line for each reason."""
        lines = [f"{len(self.tensors)} of {len(self.tensors) + len(self.left)} tensors are placed as in transformers"]
        for reason in dict.fromkeys(self.left.values()):
            lines.append(f"not compared, {reason}: {', '.join(n for n, why in self.left.items() if why == reason)}")
        return "\n".join(lines)


def compare_placements(family: Family, config: Mapping[str, Any]) -> Compared:
    """Compare the schema's placements with the plans of the class that ``config`` names in ``architectures``.

    Raises:
        FamilyFaults: a tensor is divided differently.
        ImportError: transformers is not installed, or has no such class.
    """
    check_tables(family, config)
    styles, stacks = plans_of(family, config)
    schema = family.schema(family.describe(config))
    tensors = {t.name: t for kind in kinds_in_use(schema).values() for t in kind.values()}
    agree, left, faults = [], {}, []
    for t in tensors.values():
        style, name, wanted = _style(family, t, styles)
        distribution, stack, _ = _style(family, t, stacks)
        if distribution in OF_EXPERTS and not t.experts:
            faults.append(
                f"schema: {t.name} has no experts, but transformers distributes experts of {stack} ({distribution})"
            )
        elif style is None:
            left[t.name] = "its plan does not name it" if distribution is None else DISTRIBUTED
        elif style not in STYLES:
            left[t.name] = f"its style {style} is not known"
        elif wanted == ANY and _way(t) != OUT:
            left[t.name] = ANY
        elif wanted not in (ANY, _way(t)):
            faults.append(f"schema: {t.name} is {_way(t)}, but in transformers {name} is {wanted} ({style})")
        else:
            agree.append(t.name)
    expect_none(family.name, faults)
    return Compared(tuple(agree), left)


def plans_of(family: Family, config: Mapping[str, Any]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return transformers' tensor-parallel plan, including the head, and its expert-parallel plan: module → style.

    Raises:
        ImportError: transformers is not installed, or has no class of this name.
    """
    model = class_of(config)
    whole = model.config_class
    section = getattr(whole, "sub_configs", {}).get(family.section, whole) if family.section in config else whole
    tensors = {**(getattr(section, "base_model_tp_plan", None) or {}), **(getattr(model, "_tp_plan", None) or {})}
    stacks = getattr(section, "base_model_ep_plan", None) or {}
    return tuple({k: v for k, v in plan.items() if v not in OF_MODULES} for plan in (tensors, stacks))  # type: ignore[return-value]


def _style(family: Family, t: Tensor, plan: Mapping[str, str]) -> tuple[str | None, str, str]:
    """Return style and name of the first entry that matches one of a tensor's stored names, and how it divides the tensor.

    Names of stacks are tried first: the plan has the names inside transformers' model.
    """
    spelled = [spelling[t.name] for spelling in family.spellings if t.name in spelling]
    for stored in sorted(spelled, key=lambda s: isinstance(s, str)):
        for name in _modules(stored):
            for pattern, style in plan.items():
                if re.fullmatch(r"(.*\.)?" + re.escape(pattern).replace(r"\*", r"[^.]+"), name):
                    return style, pattern, _wanted(t, style, stored)
    return None, "", ""


def _modules(spelled: str | Packed) -> Iterator[str]:
    """Yield the names that a stored tensor may have in a plan: its own, its module's, and that of the stack of all experts.

    >>> "experts.gate_up_proj" in list(_modules("experts.{expert}.up_proj.weight"))
    True
    """
    name = (spelled if isinstance(spelled, str) else spelled.name).format(layer=0, expert="{expert}", slice=0)
    yield name
    module = re.sub(r"\.(weight|bias)$", "", name)
    yield module
    yield module.removesuffix("_bias")
    stack = module.replace(".{expert}.", ".")
    for one_by_one, stacked in _IN_A_STACK.items():
        if stack != module:
            yield re.sub(rf"\.{one_by_one}$", f".{stacked}", stack)


_IN_A_STACK = {"(gate_proj|up_proj|w1|w3)": "gate_up_proj", "(down_proj|w2)": "down_proj"}
"""Pattern of one expert's tensor → name of the stack that transformers makes of them."""


def _wanted(t: Tensor, style: str, spelled: str | Packed) -> str:
    """Return how a style divides a tensor: a bias only along the out dim; a stack stored as (in, out) the other way round."""
    wanted = STYLES.get(style, "")
    if wanted == IN and len(t.shape) == 1:
        return WHOLE  # added once, after the sum
    if isinstance(spelled, Packed) and spelled.transposed and len(t.shape) > 1:
        return {OUT: IN, IN: OUT}.get(wanted, wanted)
    return wanted


def _way(t: Tensor) -> str:
    return WHOLE if t.placement is None else (OUT, IN)[t.placement.dim]
