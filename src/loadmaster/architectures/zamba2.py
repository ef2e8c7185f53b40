"""Zamba2: Mamba-2 layers, into some of which one of a few shared transformer blocks feeds.

A shared block (attention over the hidden states beside the embedding, and a gated MLP) is stored once, with the first layer
that uses it. The adapters of all layers that use it are stored there too. Layers take the blocks in turn: of two blocks, the
adapters are numbered 0, 2, 4 … and 1, 3, 5 …. Layers that use a block stay on the stage that holds it: a stage can begin only
where every block is used on one side alone. The embedding of each token passes from stage to stage as long as a block follows.

Sources: ``modeling_zamba2.py`` of transformers 5.24; ``zamba2.py`` in ``vllm/model_executor/models``, which has no stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks, mamba2
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Carried, Family, Param, Schema, Tensor, by_rows, embedding, joined, linear
from loadmaster.architectures.spelling import Spelling, packed
from loadmaster.errors import UnsupportedError

MAMBA: Final = ("linear_attention", "mamba")
AGAIN: Final = "it is the shared block of an earlier layer"
MOST_ADAPTERS: Final = 64
"""How many layers may use shared blocks, whose adapters have names each."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    require(c, "add_bias_linear", False)
    require(c, "use_conv_bias", True)
    num_layers, num_blocks, hidden = c.size("num_hidden_layers"), c.size("num_mem_blocks", 1), c.size("hidden_size")
    types = c.types("layers_block_type", (*MAMBA, "hybrid"), num_layers)
    users = [layer for layer, kind in enumerate(types) if kind == "hybrid"]
    if len(users) > MOST_ADAPTERS:
        raise UnsupportedError(f"config.json: {len(users)} layers use shared blocks; supported: up to {MOST_ADAPTERS}")
    first = {layer: users[turn % num_blocks] for turn, layer in enumerate(users)}
    mixer = (Tensor("input_norm", (hidden,)), *_mixer(c, hidden))
    decoder = (linear("linear", hidden, hidden), *(replace(t, name=f"decoder.{t.name}") for t in mixer))
    kinds = {"mamba": mixer, "hybrid": decoder}
    for block in range(min(num_blocks, len(users))):
        turns = range(block, len(users), num_blocks)
        kinds[f"hybrid with block {block}"] = (*decoder, *_block(c, hidden, turns))
    layers = ["mamba" if kind in MAMBA else "hybrid" for kind in types]
    for block, layer in enumerate(dict.fromkeys(first.values())):
        layers[layer] = f"hybrid with block {block}"
    again = "|".join(str(layer) for layer in users if first[layer] != layer)
    needed = Carried("original_hidden_states", (hidden,))
    return Schema(
        top=embedding(c, tied=True),
        kinds=kinds,
        layers=tuple(layers),
        carries=tuple((needed,) if 0 < layer <= max(users, default=0) else () for layer in range(num_layers)),
        joined=joined([first.get(layer, layer) for layer in range(num_layers)], "the shared block"),
        unread=((rf"model\.layers\.({again})\.shared_transformer\..*", AGAIN),) if again else (),
    )


def _mixer(c: Config, hidden: int) -> tuple[Tensor, ...]:
    inner, heads = c.size("mamba_expand", 2) * hidden, c.size("n_mamba_heads", 8)
    state = (c.size("mamba_ngroups", 1), c.size("mamba_d_state", 64), c.size("mamba_d_conv", 4))
    return mamba2.tensors(hidden, mamba2.Mamba2(heads, inner // heads, *state), conv_bias=True)


def _block(c: Config, hidden: int, turns: range) -> Iterator[Tensor]:
    """Yield the tensors of a shared block, and the adapters of the layers that use it, by their turn."""
    heads, wide, inner = c.size("num_attention_heads", 32), 2 * hidden, c.size("intermediate_size", 4 * hidden)
    kv_heads, head = c.size("num_key_value_heads", heads), wide // heads
    yield Tensor("attn.norm", (wide,))
    yield Tensor("mlp.norm", (hidden,))
    for tensor in blocks.attention(wide, heads, kv_heads, head):
        yield tensor if tensor.name != "attn.o" else replace(tensor, shape=(hidden, wide))
    yield from blocks.gated_mlp(hidden, inner)
    rank, into_attention = c.size("adapter_rank", 128), c.flag("use_shared_attention_adapter")
    for turn in turns:
        for part in "qkv" if into_attention else "":
            yield linear(f"adapter.{turn}.{part}_a", rank, wide)
            yield linear(f"adapter.{turn}.{part}_b", wide, rank, by_rows(head))
        yield linear(f"adapter.{turn}.mlp_a", rank, hidden)
        for part in ("gate", "up"):
            yield linear(f"adapter.{turn}.{part}_b", inner, rank, by_rows())


_SHARED: Final = blocks.LAYER + "shared_transformer."
_DECODER: Final = blocks.LAYER + "mamba_decoder."


def _of_decoder(spelling: Spelling) -> Spelling:
    """Return the spelling of a mixer that a block feeds into, whose logical names begin with ``decoder.``."""
    return {
        f"decoder.{name}": s if isinstance(s, str) else replace(s, parts=tuple(f"decoder.{part}" for part in s.parts))
        for name, s in spelling.items()
    }


def _adapter_spelling(turn: int) -> Spelling:
    attention = {
        f"adapter.{turn}.{part}_{side}": f"{_SHARED}self_attn.linear_{part}_adapter_list.{turn}.{number}.weight"
        for part in "qkv"
        for number, side in enumerate("ab")
    }
    of_mlp = f"{_SHARED}feed_forward.gate_up_proj_adapter_list.{turn}."
    both = packed(of_mlp + "1.weight", f"adapter.{turn}.gate_b", f"adapter.{turn}.up_b")
    return {**attention, f"adapter.{turn}.mlp_a": of_mlp + "0.weight", **both}


def _adapter_native(turn: int) -> tuple[Param, ...]:
    own = f"{{block}}.shared.adapters.{turn}."
    return (
        *(Param(f"{own}{part}_{side}.weight", (f"adapter.{turn}.{part}_{side}",)) for part in "qkv" for side in "ab"),
        Param(own + "gate_up_a.weight", (f"adapter.{turn}.mlp_a",)),
        Param(own + "gate_up_b.weight", (f"adapter.{turn}.gate_b", f"adapter.{turn}.up_b")),
    )


_BLOCK_NATIVE: Final = (*blocks.ATTENTION_NATIVE, *blocks.gated_mlp_native())
_TURNS: Final = range(MOST_ADAPTERS)
_OWN_NATIVE: Final = (Param("{block}.input_layernorm.weight", ("input_norm",)), *mamba2.native("{block}.mamba."))

FAMILY = Family(
    name="zamba2",
    architectures=("Zamba2ForCausalLM",),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        "norm": "model.final_layernorm.weight",
        "input_norm": blocks.LAYER + "input_layernorm.weight",
        **mamba2.spelling(blocks.LAYER + "mamba."),
        **_of_decoder({"input_norm": _DECODER + "input_layernorm.weight", **mamba2.spelling(_DECODER + "mamba.")}),
        "linear": blocks.LAYER + "linear.weight",
        "attn.norm": _SHARED + "input_layernorm.weight",
        "mlp.norm": _SHARED + "pre_ff_layernorm.weight",
        **{f"attn.{part}": f"{_SHARED}self_attn.{part}_proj.weight" for part in "qkvo"},
        **packed(_SHARED + "feed_forward.gate_up_proj.weight", "mlp.gate", "mlp.up"),
        "mlp.down": _SHARED + "feed_forward.down_proj.weight",
        **{name: spelled for turn in _TURNS for name, spelled in _adapter_spelling(turn).items()},
    },
    native=(
        *blocks.TOP_NATIVE,
        *_OWN_NATIVE,
        *(replace(p, parts=tuple(f"decoder.{part}" for part in p.parts)) for p in _OWN_NATIVE),
        Param("{block}.linear.weight", ("linear",)),
        *(Param(f"{{block}}.shared.{part}_norm.weight", (f"{part}.norm",)) for part in ("attn", "mlp")),
        *(replace(p, name=p.name.replace("{block}.", "{block}.shared.")) for p in _BLOCK_NATIVE),
        *(param for turn in _TURNS for param in _adapter_native(turn)),
    ),
    waived=(blocks.INV_FREQ,),
)
