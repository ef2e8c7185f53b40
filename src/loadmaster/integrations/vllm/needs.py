"""Which stored tensors a rank needs, by the outline of the model that was built on it. Imports neither vLLM nor torch.

vLLM's models decide while they load: each receives every tensor, and drops those of other stages and ranks with its own
checks. Here this is decided from the model before a byte is read, so that a check that a model lacks does no harm. A tensor
is skipped only for a reason that holds for every model; in doubt it is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum


class Skip(Enum):
    """Why a tensor is not offered."""

    UNUSED = "the model does not use them"
    STAGE = "another stage has their module"
    LAYER = "their layer belongs to the draft model, or to the model that it drafts for"
    EXPERT = "another rank has their expert"


@dataclass(frozen=True)
class Outline:
    """The properties of a built model that decide what to read. All names are those of the model's modules.

    ``placeholders`` replace modules of other stages. ``elsewhere`` maps the names of layer lists to the numbers of the
    layers that another model has; it has only lists that are certainly numbered as in the checkpoint. ``experts`` maps
    modules of experts to the numbers of those on this rank, if it does not hold all. ``copies_embedding``: the tied head is
    on this rank, and the loader may fill it from an embedding that is a placeholder.

    ``rename`` maps a stored name to the model's name (None: it is dropped), and ``is_unused`` is the model's own predicate
    on stored names.
    """

    placeholders: frozenset[str] = frozenset()
    elsewhere: Mapping[str, frozenset[int]] = field(default_factory=dict)
    experts: Mapping[str, frozenset[int]] = field(default_factory=dict)
    copies_embedding: bool = False
    rename: Callable[[str], str | None] = lambda name: name
    is_unused: Callable[[str], bool] = lambda name: False


def reason_to_skip(stored: str, outline: Outline) -> Skip | None:
    """Return why a stored tensor is not needed; None if it is, or may be.

    >>> stage = Outline(placeholders=frozenset({"model.layers.0", "lm_head"}), elsewhere={"model.layers": frozenset({2})})
    >>> reasons = [reason_to_skip(f"model.layers.{i}.mlp.up_proj.weight", stage) for i in range(4)]
    >>> reasons == [Skip.STAGE, None, Skip.LAYER, None]
    True
    """
    name = outline.rename(stored)
    if name is None or outline.is_unused(stored):
        return Skip.UNUSED
    for module, after in _modules(name):
        if module in outline.placeholders and not (outline.copies_embedding and not _is_numbered(module)):
            return Skip.STAGE
        if _number(after) in outline.elsewhere.get(module, ()):
            return Skip.LAYER
    if (expert := _expert(name)) is not None and _is_local_alone(name):
        held = _held(expert[0], outline.experts)
        if held is not None and expert[1] not in held:
            return Skip.EXPERT
    return None


def _modules(name: str) -> Iterator[tuple[str, str]]:
    """Yield every module in a name, and the rest of the name after it.

    >>> list(_modules("a.b.weight"))
    [('a', 'b.weight'), ('a.b', 'weight')]
    """
    parts = name.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i]), ".".join(parts[i:])


def _number(after: str) -> int | None:
    """Return the number that the rest of a name begins with, if it is a whole part and not the last."""
    first, dot, _ = after.partition(".")
    return int(first) if dot and first.isdecimal() else None


def _is_numbered(module: str) -> bool:
    return any(part.isdecimal() for part in module.split("."))


def _is_local_alone(name: str) -> bool:
    """Whether only this rank's experts matter: some kernels use the largest input scale of all experts."""
    return "input" not in name.rpartition(".")[2]


def _expert(name: str) -> tuple[str, int] | None:
    """Return the module of experts that a tensor of one expert belongs to, and the expert's number."""
    before, is_expert, after = name.partition(".experts.")
    number = _number(after)
    return (f"{before}.experts", number) if is_expert and number is not None else None


def _held(module: str, experts: Mapping[str, frozenset[int]]) -> frozenset[int] | None:
    """Return the numbers of the experts that a module holds, by its name in the checkpoint; None in doubt.

    The model's name is the same, or has one more module in the same layer (a draft model's layer has a block in between).

    >>> _held("model.layers.9.mlp.experts", {"model.layers.9.mtp_block.mlp.experts": frozenset({0})})
    frozenset({0})
    """
    if module in experts or not experts:
        return experts.get(module)
    layer = next((f"{m}." for m, _ in _modules(module) if m.rpartition(".")[2].isdecimal()), None)
    inside = [held for name, held in experts.items() if layer is not None and name.startswith(layer)]
    return inside[0] if len(inside) == 1 else None


def sources(param: str, fused: Mapping[str, Iterable[str]], stored: Iterable[str], most: int = 6) -> list[str]:
    """Return one line for each tensor that should have filled a parameter.

    ``fused`` are the model's fused modules and their parts, ``stored`` the checkpoint's names, renamed as in the model. Only
    for fused modules are the names of the parts known; for others the nearest stored names are listed.

    >>> sources("m.0.qkv_proj.weight", {"qkv_proj": ["q_proj", "k_proj"]}, ["m.0.q_proj.weight"])
    ['m.0.q_proj.weight: stored', 'm.0.k_proj.weight: not in the checkpoint']
    >>> sources("m.0.o_proj.weight", {}, ["m.0.q_proj.weight"])
    ['m.0.o_proj.weight: not in the checkpoint', 'stored below m.0: m.0.q_proj.weight']
    """
    have = set(stored)
    module, _, leaf = param.rpartition(".")
    parent, _, module_name = module.rpartition(".")
    module = module.removesuffix(".routed_experts")
    parts = [f"{parent}.{part}.{leaf}".lstrip(".") for part in fused.get(module_name, ())]
    lines = [f"{n}: {'stored' if n in have else 'not in the checkpoint'}" for n in parts or [param]]
    if any(n in have for n in parts or [param]):
        return lines
    where = module if any(n.startswith(f"{module}.") for n in have) else parent
    near = sorted(n for n in have if not where or n.startswith(f"{where}."))
    shown = ", ".join(near[:most]) + (f" and {len(near) - most:,} more" if len(near) > most else "")
    if module.endswith("experts"):
        lines = []
    return [*lines, f"stored below {where or 'the root'}: {shown or 'nothing'}"]


def expert_sources(
    param: str, parts: Mapping[str, Iterable[str]], numbers: Iterable[int], stored: Iterable[str], most: int = 6
) -> list[str]:
    """Return one line for each expert's tensor that a stack of experts lacks; none if their names are in doubt.

    ``parts`` are the parts of a stack (``w13``), ``numbers`` the numbers of the experts concerned.

    >>> stored = ["m.experts.0.up_proj.weight", "m.experts.0.gate_proj.weight", "m.experts.1.gate_proj.weight"]
    >>> expert_sources("m.experts.routed_experts.w13_weight", {"w13": ("gate_proj", "up_proj")}, [0, 1], stored)
    ['m.experts.1.up_proj.weight: not in the checkpoint']
    """
    have = set(stored)
    module, _, leaf = param.rpartition(".")
    module = module.removesuffix(".routed_experts")
    stack, _, kind = leaf.partition("_")
    if not any(n.startswith(f"{module}.") for n in have):
        return []
    names = [f"{module}.{i}.{part}.{kind}" for i in numbers for part in parts.get(stack, ())]
    absent = [f"{n}: not in the checkpoint" for n in names if n not in have]
    return absent[:most] + ([f"and {len(absent) - most:,} more"] if len(absent) > most else [])
