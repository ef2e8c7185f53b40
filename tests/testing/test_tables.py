"""The kit on wrong tables: each is broken in one way, and the sentence says which and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loadmaster.architectures import (
    Family,
    Packed,
    Param,
    Placement,
    Schema,
    Spelling,
    Tensor,
    blocks,
    by_columns,
    by_rows,
    packed,
)
from loadmaster.testing import FamilyFaults, check_tables, unreached
from tests.testing.sample import CONFIG, FAMILY, LAYER, schema

WQ = LAYER + "self_attn.q_proj.weight"


def spelled(**changes: str | Packed | None) -> Family:
    """The sample with other stored names (None: none); dots in logical names are written as underscores twice."""
    named = {k.replace("__", "."): v for k, v in changes.items()}
    spelling: dict[str, Any] = {**FAMILY.spelling, **named}
    return replace(FAMILY, spelling={k: v for k, v in spelling.items() if v is not None})


def described(change: Callable[[Schema], Schema]) -> Family:
    return replace(FAMILY, schema=lambda c: change(schema(c)))


def with_tensor(name: str, make: Callable[[Tensor], Tensor]) -> Family:
    """The sample with one logical tensor made otherwise, in all kinds."""

    def change(s: Schema) -> Schema:
        return replace(s, kinds={k: tuple(make(t) if t.name == name else t for t in ts) for k, ts in s.kinds.items()})

    return described(change)


def native(*changes: tuple[str, Param | None], also: tuple[Param, ...] = ()) -> Family:
    """The sample with some parameters, by name, replaced or removed, and more added."""
    by_name: dict[str, Param | None] = {p.name: p for p in FAMILY.native} | dict(changes)
    return replace(FAMILY, native=(*(p for p in by_name.values() if p), *also))


def test_a_right_family_has_no_faults() -> None:
    check_tables(FAMILY, CONFIG)
    check_tables(FAMILY, {**CONFIG, "attention_bias": True, "tie_word_embeddings": True})


def _variant(spelling: Spelling) -> Family:
    return replace(FAMILY, variants=(spelling,))


PACKED = FAMILY.variants[0]

WRONG: list[tuple[Family, str]] = [
    # the schema
    (described(lambda s: replace(s, layers=("dense", "linear"))), "schema: layer 1 is of the kind 'linear'"),
    (described(lambda s: replace(s, layers=())), "schema: the model has no layers"),
    (
        described(lambda s: replace(s, top=(*s.top, Tensor("gain", (8,))))),
        "schema: gain is a tensor of the model itself and of the kind 'dense'",
    ),
    (described(lambda s: replace(s, carries=(("topk",),))), "schema: carries is given for 1 layers, and there are 4"),
    (with_tensor("gain", lambda t: replace(t, shape=(0,))), "schema: gain has the shape [0]"),
    (
        with_tensor("mlp.down", lambda t: replace(t, spare=8)),
        "schema: mlp.down has 8 spare rows; only a tensor that is not",
    ),
    (
        with_tensor("gain", lambda t: replace(t, slices=5)),
        "schema: gain [64] is stored in 5 slices; only a tensor without experts and spare rows may be",
    ),
    (
        with_tensor("mlp.down", lambda t: replace(t, slices=4)),
        "schema: mlp.down is stored in slices, so it needs its own `formats`",
    ),
    (
        with_tensor("gain", lambda t: replace(t, slices=4)),
        "gain is stored as model.layers.{layer}.gain, with {slice} 0 times, expected 1",
    ),
    (
        with_tensor("gain", lambda t: replace(t, placement=by_columns())),
        "schema: gain is divided along dim 1, and its shape is [64]",
    ),
    (
        with_tensor("attn.q", lambda t: replace(t, placement=by_rows(48))),
        "schema: attn.q is divided in units of 48, and dim 0 has 64 elements",
    ),
    (
        with_tensor("attn.q", lambda t: replace(t, placement=Placement(0, 16, pad=40))),
        "schema: attn.q is padded to multiples of 40, expected multiples of its unit, 16",
    ),
    (
        with_tensor("attn.o", lambda t: replace(t, placement=by_rows())),
        "schema: attn.q is divided along its out dim, but attn.o, which consumes it, is not divided along its in dim",
    ),
    (
        with_tensor("attn.o", lambda t: replace(t, placement=None)),
        "schema: attn.q is divided along its out dim, but attn.o, which consumes it, is not",
    ),
    (
        with_tensor("mlp.down", lambda t: replace(t, placement=by_columns(48))),
        "schema: mlp.gate is divided in 96 units along its out dim, but mlp.down, which consumes it, in 2 along its in dim",
    ),
    (
        with_tensor("moe.down", lambda t: replace(t, placement=by_rows())),
        "schema: moe.gate is divided along its out dim, but moe.down, which consumes it, is not divided along its in dim",
    ),
    (with_tensor("gain", lambda t: replace(t, quantised=True)), "schema: gain may be quantised"),
    (replace(FAMILY, schema=lambda c: None), "schema: it returns NoneType"),  # type: ignore[arg-type,return-value]
    (replace(FAMILY, schema=lambda c: {}["sizes"]), "schema: it fails on this config: KeyError: 'sizes'"),
    (
        replace(FAMILY, schema=lambda c: Schema((), {}, ("x",) * c.size("depth"))),
        "schema: it refuses this config: config.json has no 'depth'",
    ),
    (
        with_tensor("attn.q", lambda t: replace(t, head=24)),
        "schema: attn.q [64, 64] has heads of 24 rows, divided in units of 16; its rows and units must be whole",
    ),
    # the spelling
    (
        _variant(FAMILY.spelling | packed(LAYER + "gain", "gain", pairs=True)),
        "model.layers.{layer}.gain is stored pair by pair, and none of its parts has heads",
    ),
    (
        _variant(FAMILY.spelling | packed(LAYER + "q.weight", "attn.q", transposed=True, pairs=True)),
        "model.layers.{layer}.q.weight is stored pair by pair, which is not supported with by_group",
    ),
    (spelled(gain=None), "spelling: gain (the kind 'dense') has no stored name"),
    (
        _variant(FAMILY.spelling | {"gain": LAYER + "input_layernorm.weight"}),
        "variants[0]: input_norm and gain are all",
    ),
    (spelled(gian=LAYER + "gian"), "spelling: gian is spelled, and neither the schema nor the native target has it"),
    (spelled(gain="model.gain"), "gain is stored as model.gain, with {layer} 0 times, expected 1"),
    (spelled(norm=LAYER + "norm"), "norm is stored as model.layers.{layer}.norm, with {layer} 1 times, expected 0"),
    (
        spelled(moe__up=LAYER + "mlp.up.weight"),
        "moe.up is stored as model.layers.{layer}.mlp.up.weight, with {expert} 0",
    ),
    (spelled(gain=LAYER + "{index}.gain"), "{index} is not known: use {layer}, {expert} and {slice}"),
    (spelled(gain=LAYER + "gain}"), "gain is stored as 'model.layers.{layer}.gain}', which is not a pattern"),
    (
        spelled(moe__gate=LAYER + "mlp.experts.{expert}.up_proj.weight"),
        "spelling: moe.gate and moe.up are all stored as model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    ),
    # what is packed
    (_variant({**PACKED, "attn.v": WQ}), "attn.q and attn.v are packed into"),
    (
        _variant({**PACKED, "attn.q": Packed(LAYER + "self_attn.qkv.weight", ("attn.k", "attn.v"))}),
        "attn.q is packed into model.layers.{layer}.self_attn.qkv.weight, whose parts are attn.k, attn.v",
    ),
    (
        _variant(
            {**PACKED, **dict.fromkeys(("input_norm", "gain"), Packed(LAYER + "n", ("input_norm", "gain"), True))}
        ),
        "input_norm is stacked in model.layers.{layer}.n, and has no experts",
    ),
    (
        _variant({**PACKED, **dict.fromkeys(("attn.o", "mlp.up"), Packed(LAYER + "o_up", ("attn.o", "mlp.up")))}),
        "attn.o and mlp.up are packed into model.layers.{layer}.o_up, and the kind 'sparse' has no mlp.up",
    ),
    (
        _variant({**PACKED, **dict.fromkeys(("mlp.up", "mlp.down"), Packed(LAYER + "m", ("mlp.up", "mlp.down")))}),
        "mlp.up [96, 64] and mlp.down [64, 96] are packed into model.layers.{layer}.m one after another",
    ),
    # the target
    (native(("{block}.gain", None)), "native: gain (the kind 'dense') is in no parameter"),
    (native(also=(Param("{block}.twice", ("gain",)),)), "is in {block}.gain and {block}.twice, expected one parameter"),
    (
        native(
            (
                "{block}.self_attn.qkv_proj.weight",
                Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.kk", "attn.v")),
            )
        ),
        "native: {block}.self_attn.qkv_proj.weight fuses attn.q, attn.kk, attn.v, and the kind 'dense' has attn.q without",
    ),
    (
        native(("{block}.mlp.down_proj.weight", None), ("{block}.gain", Param("{block}.gain", ("gain", "mlp.down")))),
        "native: {block}.gain fuses gain [64] and mlp.down [64, 96] along their out dim",
    ),
    (
        with_tensor("mlp.up", lambda t: replace(t, placement=by_columns())),
        "fuses mlp.gate (divided along dim 0) and mlp.up (divided along dim 1)",
    ),
    (native(("{block}.gain", Param("gain", ("gain",)))), "native: gain has no stage: parameters of layers begin with"),
    (native(("norm.weight", Param("norm.weight", ("norm",)))), "native: norm.weight has no stage"),
    (
        native(("lm_head.weight", Param("lm_head.weight", ("head",), otherwise="embed", stage="last"))),
        "native: lm_head.weight falls back to embed, which is not a parameter of the model itself",
    ),
    (
        native(("{block}.gain", Param("{block}.input_layernorm.weight", ("gain",)))),
        "native: 2 parameters of the kind 'dense' are called {block}.input_layernorm.weight",
    ),
    (
        native(("{block}.mlp.down_proj.weight", Param("{block}.mlp.down", ("mlp.down",)))),
        "native: {block}.mlp.down may be quantised; its name must end in weight, which a scale's suffix replaces",
    ),
    # the rest
    (
        replace(FAMILY, waived=((r".*norm.*", "norms"),)),
        "waived: the pattern '.*norm.*' (norms) matches model.norm.weight",
    ),
    (replace(FAMILY, waived=((r"(", "nothing"),)), "waived: the pattern '(' is not a regular expression"),
    (
        replace(FAMILY, architectures=("SampleForCausalLM", "LlamaForCausalLM")),
        "family: LlamaForCausalLM already belongs to loadmaster's family 'llama'",
    ),
    (replace(FAMILY, architectures=()), "family: it names no architecture"),
    (
        replace(FAMILY, architectures=("Other",)),
        "family: the config names ['SampleForCausalLM'], but the family describes Other",
    ),
]


@pytest.mark.parametrize(("family", "says"), WRONG, ids=[says[:60] for _, says in WRONG])
def test_wrong_tables_are_said_in_a_sentence(family: Family, says: str) -> None:
    with pytest.raises(FamilyFaults) as caught:
        check_tables(family, CONFIG)
    assert says in str(caught.value)
    assert len(caught.value.faults) <= 6, "one wrong line, and few sentences"


def test_names_that_meet_only_in_some_layers_and_experts_are_found() -> None:
    meeting = {f"moe.{part}": "model.{layer}{expert}." + part for part in ("gate", "up", "down")}
    wrong = spelled(**{name.replace(".", "__"): stored for name, stored in meeting.items()})
    with pytest.raises(
        FamilyFaults, match=r"moe.gate of layer 1, expert 10 and moe.gate of layer 11, expert 0 are both"
    ):
        check_tables(wrong, {**CONFIG, "num_hidden_layers": 12, "num_experts": 12})


def test_what_no_config_reaches_is_listed() -> None:
    biases = {"attn.q_bias", "attn.k_bias", "attn.v_bias"}
    every = unreached(FAMILY, CONFIG)
    assert biases <= every
    assert not biases & unreached(FAMILY, CONFIG, {**CONFIG, "attention_bias": True})
    assert blocks.DECODER_SPELLING.keys() - every >= {"attn.q", "mlp.gate", "head"}
