"""Nemotron-H and Nemotron-3: one mixer a layer, which is Mamba-2, attention, experts or an MLP, none of them with a gate.

The pattern gives the mixer of each layer: ``M`` Mamba-2, ``*`` attention, ``E`` experts, ``-`` MLP. The experts of Nemotron-3
may work in a latent (Super: 1024 of 4096), between two projections that every rank holds. A draft is stored as several blocks,
one for each letter of its pattern (``*E``): the first has the projection, the last the norm. It shares the model's embedding
and head. In Puzzle, which was pruned from Super, ``block_configs`` give each layer its own sizes, and ``mtp_block_configs``
each block of the draft.

Sources: the released config of Super, whose parameters are as published; ``modeling_nemotron_h.py`` of transformers;
``nemotron_h.py``, ``nemotron_h_mtp.py`` and ``mamba_mixer2.py`` in ``vllm/model_executor``; for Puzzle, whose config class only
its releases have, Megatron-Bridge's ``nemotronh`` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from loadmaster.architectures import blocks, mamba2
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import require
from loadmaster.architectures.schema import Family, Param, Schema, Tensor, by_columns, by_rows, embedding, linear
from loadmaster.architectures.spelling import Spelling, packed, respelled
from loadmaster.errors import ConfigError, UnsupportedError

PUZZLE: Final = "NemotronHPuzzleForCausalLM"
TYPES: Final = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "moe": "E", "mlp": "-"}
"""The names in lists of types, older and newer, and the letters that patterns have for them."""

Tensors: TypeAlias = tuple[Tensor, ...]


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    for key in ("attention_bias", "mlp_bias", "use_bias"):
        require(c, key, False)
    layers = _layers(c, "block_configs", "hybrid_override_pattern", "layers_block_type")
    if (count := c.size("num_hidden_layers", len(layers))) != len(layers):
        raise ConfigError(f"config.json: num_hidden_layers is {count}, and the pattern gives {len(layers)} layers")
    num_drafts, hidden = c.size("num_nextn_predict_layers", 0, least=0), c.size("hidden_size")
    step = _layers(c, "mtp_block_configs", "mtp_hybrid_override_pattern", "mtp_layers_block_type") if num_drafts else ()
    if not {letter for letter, _ in step} <= {*"*E"}:
        raise UnsupportedError("config.json: mtp_hybrid_override_pattern is supported with * and E only")
    mixers = {(k, own): (Tensor("input_norm", (hidden,)), *_MIXERS[k](own)) for k, own in dict.fromkeys(layers + step)}
    names = _named({mixers[layer]: layer[0] for layer in layers})
    first = (linear("mtp.eh_proj", hidden, 2 * hidden), *(Tensor(f"mtp.{n}", (hidden,)) for n in ("enorm", "hnorm")))
    blocks_of_draft = {f"mtp {number} {block[0]}": mixers[block] for number, block in enumerate(step)}
    for place, more in ((0, first), (-1, (Tensor("mtp.norm", (hidden,)),))) if step else ():
        blocks_of_draft[[*blocks_of_draft][place]] += more
    return Schema(
        top=embedding(c),
        kinds={**{name: tensors for tensors, name in names.items()}, **blocks_of_draft},
        layers=tuple(names[mixers[layer]] for layer in layers),
        drafts=tuple(blocks_of_draft) * num_drafts,
        blocks_a_draft=len(step) or 1,
    )


def _named(letters: Mapping[Tensors, str]) -> dict[Tensors, str]:
    """Return a name for each kind of layer: its letter, and a number where several have the same."""
    names: dict[Tensors, str] = {}
    for tensors, letter in letters.items():
        alike = sum(name.startswith(letter) for name in names.values())
        names[tensors] = f"{letter}{alike + 1}" if alike else letter
    return names


def _layers(c: Config, of_blocks: str, pattern: str, of_types: str) -> tuple[tuple[str, Config], ...]:
    """Return the letter of each layer's mixer and the layer's config: by block, by the pattern, or by the list of types."""
    own = c.objects(of_blocks)
    names = [str(block.values.get("block_type")) for block in own] or c.values.get(pattern) or c.strings(of_types)
    letters = [TYPES.get(str(n), str(n)) for n in names] if isinstance(names, Sequence) else []
    if not letters or not {*letters} <= {*_MIXERS}:
        raise ConfigError(
            f"config.json: {pattern} must give M, *, E or - for each layer, or {of_types} or the blocks of {of_blocks} "
            "their names"
        )
    configs = [Config({**c.values, **{k: v for k, v in b.values.items() if v is not None}}, b.where) for b in own]
    return tuple(zip(letters, configs or (c,) * len(letters), strict=True))


def _mamba(c: Config) -> tuple[Tensor, ...]:
    heads, head, groups = c.size("mamba_num_heads"), c.size("mamba_head_dim"), c.size("n_groups", 8)
    sizes = mamba2.Mamba2(heads, head, groups, c.size("ssm_state_size", 128), c.size("conv_kernel", 4))
    return mamba2.tensors(c.size("hidden_size"), sizes, conv_bias=c.flag("use_conv_bias", True))


def _experts(c: Config) -> tuple[Tensor, ...]:
    hidden, inner, latent = c.size("hidden_size"), c.size("moe_intermediate_size"), c.optional_size("moe_latent_size")
    routed = blocks.experts(hidden, inner, c.size("n_routed_experts"), router_bias=True, latent=latent)
    tensors = [t for t in routed if t.name != "moe.gate"]
    if latent:
        tensors += [linear("moe.fc1_latent", latent, hidden), linear("moe.fc2_latent", hidden, latent)]
    if shared := c.size("n_shared_experts", 1, least=0):
        inner = shared * c.size("moe_shared_expert_intermediate_size")
        tensors += [linear("shared.up", inner, hidden, by_rows()), linear("shared.down", hidden, inner, by_columns())]
    return tuple(tensors)


_MIXERS: dict[str, Callable[[Config], tuple[Tensor, ...]]] = {
    "M": _mamba,
    "*": lambda c: blocks.attention(*blocks.heads_of(c)),
    "E": _experts,
    "-": lambda c: blocks.plain_mlp(c.size("hidden_size"), c.size("intermediate_size")),
}
_LAYER = "backbone.layers.{layer}."
_ALONE = {
    "attn.o": "o_proj.weight",
    **{"mlp.up": "up_proj.weight", "mlp.down": "down_proj.weight"},
    **{f"shared.{part}": f"shared_experts.{part}_proj.weight" for part in ("up", "down")},
    **{"moe.router": "gate.weight", "moe.router_bias": "gate.e_score_correction_bias"},
    **{f"moe.{part}_latent": f"{part}_latent_proj.weight" for part in ("fc1", "fc2")},
}
_STEP = {f"mtp.{name}": f"{name}.weight" for name in ("eh_proj", "enorm", "hnorm")} | {
    "mtp.norm": "final_layernorm.weight"
}
_TOP = {"embed": "backbone.embeddings.weight", "norm": "backbone.norm_f.weight", "head": "lm_head.weight"}
_MIXER = _LAYER + "mixer."
_BLOCK: Spelling = {
    "input_norm": _LAYER + "norm.weight",
    **mamba2.spelling(_MIXER),
    **{name: _MIXER + stored for name, stored in _ALONE.items()},
    **{f"attn.{part}": f"{_MIXER}{part}_proj.weight" for part in "qkv"},
    **{f"moe.{part}": f"{_MIXER}experts.{{expert}}.{part}_proj.weight" for part in ("up", "down")},
}
_INSIDE = respelled({**_TOP, **_BLOCK}, ("backbone.", "model."))
_INSIDE_EXPERTS = "model.layers.{layer}.mixer.experts."
_STACKED = packed(_INSIDE_EXPERTS + "up_proj", "moe.up", stacked=True)
_STACKED |= packed(_INSIDE_EXPERTS + "down_proj", "moe.down", stacked=True)

FAMILY = Family(
    name="nemotron_h",
    architectures=("NemotronHForCausalLM", PUZZLE),
    schema=schema,
    spelling={**_TOP, **_BLOCK},
    variants=(_INSIDE, {**_INSIDE, **_STACKED}),
    unchecked={PUZZLE: "transformers has no class of it; its names are those of NemotronHForCausalLM"},
    drafts=(respelled({**_BLOCK, **{n: _LAYER + s for n, s in _STEP.items()}}, ("backbone.", "mtp.")),),
    native=(
        *blocks.TOP_NATIVE,
        Param("{block}.norm.weight", ("input_norm",)),
        Param("{block}.mixer.qkv_proj.weight", ("attn.q", "attn.k", "attn.v")),
        Param("{block}.mixer.experts.w1_weight", ("moe.up",)),
        Param("{block}.mixer.experts.w2_weight", ("moe.down",)),
        *mamba2.native("{block}.mixer."),
        *(Param(f"{{block}}.mixer.{stored}", (name,)) for name, stored in _ALONE.items()),
        *blocks.DRAFT_NATIVE,
    ),
)
