"""Which stored tensors a rank needs, given an outline of the model that was built on it. Knows neither vLLM nor torch.

vLLM's models decide while they load: each is offered every tensor, and drops those of other stages and ranks by guards of
its own. Here the same is decided before a byte is read, from the model itself, so that a guard which a model forgot is
never met. A tensor is left out only for a reason that holds for every model; whatever is in doubt is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum


class Skip(Enum):
    """Why a tensor is not offered."""

    UNUSED = "the model says that it does not use it"
    STAGE = "its module is a placeholder here: another stage has it"
    LAYER = "another model has the layer: the draft, or the one that it drafts for"
    EXPERT = "another rank has the expert"


@dataclass(frozen=True)
class Outline:
    """A built model, as far as it decides what to read. All names are those of the model's modules.

    ``placeholders`` stand for modules of other stages. ``elsewhere`` are lists of layers by name, with the numbers of the
    layers that another model has; only lists whose numbers are surely those of the checkpoint. ``experts`` are modules of
    experts with the numbers of those that this rank holds; only where it does not hold all. ``copies_embedding``: the head
    is tied and lives here, and the loader may fill it from an embedding that is a placeholder.

    ``rename`` gives a stored name as the model's own mapping does (None: it is dropped), and ``is_unused`` is the model's
    own word on a stored name.
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
    """Yield every module that a name goes through, and what follows it.

    >>> list(_modules("a.b.weight"))
    [('a', 'b.weight'), ('a.b', 'weight')]
    """
    parts = name.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i]), ".".join(parts[i:])


def _number(after: str) -> int | None:
    """Return the number that a rest of a name begins with: a whole part, with more behind it."""
    first, dot, _ = after.partition(".")
    return int(first) if dot and first.isdecimal() else None


def _is_numbered(module: str) -> bool:
    return any(part.isdecimal() for part in module.split("."))


def _is_local_alone(name: str) -> bool:
    """Whether no other rank's copy matters: some kernels take the largest input scale over all experts."""
    return "input" not in name.rpartition(".")[2]


def _expert(name: str) -> tuple[str, int] | None:
    """Return the module of experts that a tensor of one expert belongs to, and the expert's number."""
    before, found, after = name.partition(".experts.")
    number = _number(after)
    return (f"{before}.experts", number) if found and number is not None else None


def _held(module: str, experts: Mapping[str, frozenset[int]]) -> frozenset[int] | None:
    """Return the experts held of a module, as the checkpoint calls it; None where that is in doubt.

    It is called the same in the model, or lies deeper in the same layer (a draft's layer has a block between).

    >>> _held("model.layers.9.mlp.experts", {"model.layers.9.mtp_block.mlp.experts": frozenset({0})})
    frozenset({0})
    """
    if module in experts or not experts:
        return experts.get(module)
    layer = next((f"{m}." for m, _ in _modules(module) if m.rpartition(".")[2].isdecimal()), None)
    inside = [held for name, held in experts.items() if layer is not None and name.startswith(layer)]
    return inside[0] if len(inside) == 1 else None


def sources(param: str, fused: Mapping[str, Iterable[str]], stored: Iterable[str], most: int = 6) -> list[str]:
    """Return what can be told of the tensors that would have fed a parameter, one line each.

    ``fused`` are the model's fused modules and their parts, ``stored`` the checkpoint's names as the model calls them. What
    the parts of a parameter are called is known of these alone; of any other, the names that lie nearest are told.

    >>> sources("m.0.qkv_proj.weight", {"qkv_proj": ["q_proj", "k_proj"]}, ["m.0.q_proj.weight"])
    ['m.0.q_proj.weight: stored', 'm.0.k_proj.weight: not in the checkpoint']
    >>> sources("m.0.o_proj.weight", {}, ["m.0.q_proj.weight"])
    ['m.0.o_proj.weight: not in the checkpoint', 'stored below m.0: m.0.q_proj.weight']
    """
    have = set(stored)
    module, _, leaf = param.rpartition(".")
    parent, _, own = module.rpartition(".")
    module = module.removesuffix(".routed_experts")
    parts = [f"{parent}.{part}.{leaf}".lstrip(".") for part in fused.get(own, ())]
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
    """Return the tensors of experts that a stack of them lacks, one line each; none where their names are in doubt.

    ``parts`` are what a stack (``w13``) is made of, ``numbers`` those of the experts concerned.

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
