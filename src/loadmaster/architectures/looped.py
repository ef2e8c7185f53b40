"""Models that run all layers several times in turn, so that no cut between stages is possible: HRM-Text and IQuest-LoopCoder.

HRM-Text has two stacks of layers under one number each, a fast one that runs several times before the slow one does, and norms
without weights. IQuest-LoopCoder is a Llama whose later turns mix what they attend to with the first turn's, by a gate for each
head. vLLM has no stages of them either.

Sources: ``modeling_hrm_text.py`` of transformers 5.24 and its ``conversion_mapping.py``; ``hrm_text.py`` and
``iquest_loopcoder.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_rows, embedding, linear
from loadmaster.architectures.spelling import packed

CODER: Final = "IQuestLoopCoderForCausalLM"
STACKS: Final = {"low": "L_module", "high": "H_module"}
"""The two stacks of an HRM-Text, and what they are called where they are stored."""


def _uncut(num_layers: int, turns: int) -> tuple[str, ...]:
    """Return for each layer why no stage can begin there: all of them run in turn."""
    return tuple(f"all layers run {turns} times in turn" if layer and turns > 1 else "" for layer in range(num_layers))


def hrm(c: Config) -> Schema:
    """Return the logical tensors of an HRM-Text: a layer is that of both stacks with its number."""
    for key in ("attention_bias", "mlp_bias"):
        require(c, key, False)
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads", 12)
    head, num_layers = c.size("head_dim", 128), c.size("num_layers_per_stack", c.size("num_hidden_layers", 16))
    layer = (
        linear("attn.gate", heads * head, hidden, by_rows(head)),
        *blocks.attention(hidden, heads, heads, head),
        *blocks.gated_mlp(hidden, c.size("intermediate_size", 4096)),
    )
    return Schema(
        top=(*(t for t in embedding(c) if t.name != "norm"), Tensor("first_state", (hidden,))),
        kinds={"layer": tuple(replace(t, name=f"{stack}.{t.name}") for stack in STACKS for t in layer)},
        layers=("layer",) * num_layers,
        joined=_uncut(num_layers, c.size("H_cycles", 2) * (c.size("L_cycles", 3) + 1)),
    )


def loop_coder(c: Config) -> Schema:
    """Return the logical tensors of an IQuest-LoopCoder."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    num_layers, turns = c.size("num_hidden_layers"), c.size("loop_num", 2)
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(hidden, heads, kv_heads, head),
        *blocks.gated_mlp(hidden, c.size("intermediate_size")),
        linear("loop.gate", heads, head, by_rows()),
        Tensor("loop.gate_bias", (heads,), by_rows()),
    )
    layers = ("dense",) * num_layers
    return Schema(
        embedding(c), {"dense": layer}, layers, joined=_uncut(num_layers, turns), passes=(turns,) * num_layers
    )


_MODULES: Final = {
    "attn.gqkv_proj": ("attn.gate", "attn.q", "attn.k", "attn.v"),
    "attn.o_proj": ("attn.o",),
    "mlp.gate_up_proj": ("mlp.gate", "mlp.up"),
    "mlp.down_proj": ("mlp.down",),
}
_OF_STACKS: Final = {
    f"{module}.layers.{{layer}}.{stored}.weight": tuple(f"{stack}.{part}" for part in parts)
    for stack, module in STACKS.items()
    for stored, parts in _MODULES.items()
}

HRM_TEXT = Family(
    name="hrm_text",
    architectures=("HrmTextForCausalLM",),
    schema=hrm,
    spelling={
        **{name: stored for name, stored in blocks.TOP_SPELLING.items() if name != "norm"},
        "first_state": "model.z_L_init",
        **{name: s for stored, parts in _OF_STACKS.items() for name, s in packed(f"model.{stored}", *parts).items()},
    },
    native=(
        *blocks.TOP_NATIVE,
        Param("z_L_init", ("first_state",), stage="first"),
        *(Param("{block}." + stored.replace(".layers.{layer}", ""), parts) for stored, parts in _OF_STACKS.items()),
    ),
    waived=(blocks.INV_FREQ,),
)
LOOP_CODER = Family(
    name="iquest_loopcoder",
    architectures=(CODER,),
    schema=loop_coder,
    spelling={
        **blocks.DECODER_SPELLING,
        "loop.gate": "model.gate_projections.{layer}.weight",
        "loop.gate_bias": "model.gate_projections.{layer}.bias",
    },
    native=(
        *blocks.DECODER_NATIVE,
        Param("{block}.loop_gate.weight", ("loop.gate",)),
        Param("{block}.loop_gate.bias", ("loop.gate_bias",)),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={CODER: OF_VLLM},
)
