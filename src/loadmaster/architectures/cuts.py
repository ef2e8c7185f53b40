"""Cuts between stages: what crosses each boundary of layers on an engine, and where no stage can begin.

Two tables decide. The schema says what the layers need from earlier ones: tensors that a stage may pass to the next
(`Schema.carries`), and what it cannot, such as another layer's KV cache (`Schema.joined`). The target says what its engine passes
(`Target.sends`).
"""

from __future__ import annotations

from loadmaster.architectures.schema import Carried, Schema
from loadmaster.architectures.target import Target


def crossing(schema: Schema, target: Target, layer: int) -> tuple[Carried, ...]:
    """Return what crosses a cut before ``layer``; nothing before the first."""
    needed = schema.carried_into(layer)
    if not needed or target.sends is None:
        return needed
    sent = {f.name: f for f in needed}
    return tuple(sent.get(name, Carried(name, sent["hidden_states"].shape)) for name in target.sends)


def obstacle(schema: Schema, target: Target, layer: int) -> str | None:
    """Return why no stage after the first can begin at ``layer``; None: one can.

    >>> from loadmaster.architectures.schema import Tensor
    >>> shared = Carried("topk_indices", (2048,), "I64", source=0)
    >>> schema = Schema((Tensor("embed", (8, 4)),), {}, ("full", "shared"), carries=((), (shared,)))
    >>> obstacle(schema, Target("native", ()), 1) is None
    True
    >>> obstacle(schema, Target("vllm-0.32", (), sends=("hidden_states", "residual")), 1)
    'layer 1 needs topk_indices of layer 0, and vllm-0.32 passes only hidden_states, residual'
    """
    if layer == 0:
        return "the first stage would have no layer"
    if layer == len(schema.layers):
        return "the last stage would have no layer: norm, head and MTP layers stay with the last one"
    if schema.joined and schema.joined[layer]:
        return schema.joined[layer]
    if target.sends is None:
        return None
    for needed in schema.carried_into(layer):
        if needed.name not in target.sends:
            of = "" if needed.source is None else f" of layer {needed.source}"
            passed = f"only {', '.join(target.sends)}" if target.sends else "nothing"
            return f"layer {layer} needs {needed.name}{of}, and {target.name} passes {passed}"
    return None


def legal_starts(schema: Schema, target: Target) -> tuple[int, ...]:
    """Return the layers at which a stage after the first can begin."""
    return tuple(layer for layer in range(1, len(schema.layers)) if obstacle(schema, target, layer) is None)
