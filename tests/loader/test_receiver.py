"""Tensors that are pushed: any order, any number of calls, buffers overwritten in between."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
import torch

from loadmaster.checkpoint import open_checkpoint
from loadmaster.errors import LoadError
from loadmaster.loader import Receiver, load_rank
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan, build_plan, prove
from tests.conftest import Tiny
from tests.loader.reference import Reference, differences, read_all


def _plan(tiny: Tiny, family: str = "glm-5.1-fp8", pp: int = 2, tp: int = 1, drafts: int = 1) -> ProvenPlan:
    layout = ParallelLayout(pp, tp, num_draft_layers=drafts)
    return prove(build_plan(open_checkpoint(tiny(family)), layout)).require_proven()


def _offer_and_overwrite(receiver: Receiver, name: str, tensor: torch.Tensor) -> bool:
    """Offer from a buffer that is scribbled over as soon as the call returns."""
    buffer = tensor.clone()
    taken = receiver.offer(name, buffer)
    buffer.view(torch.uint8).fill_(0xA5)
    return taken


@pytest.mark.parametrize("layer", [4, 6], ids=["a layer of the last stage", "the MTP layer"])
def test_the_indexer_pair_and_its_scale_may_come_in_any_order_and_any_number_of_calls(layer: int, tiny: Tiny) -> None:
    plan = _plan(tiny)
    stored = read_all(tiny("glm-5.1-fp8"))
    p = f"model.layers.{layer}.self_attn.indexer."
    three = [p + "wk.weight", p + "wk.weight_scale_inv", p + "weights_proj.weight"]
    target = f"layers.{layer}" if layer < 6 else "mtp.0"
    expected = Reference(tiny("glm-5.1-fp8"), pp=(1, 2), drafts=1).params
    for order in permutations(three):
        for rest_between in (False, True):
            receiver = Receiver(plan, 1)
            others = [n for n in stored if n not in three]
            for i, name in enumerate(order):
                if rest_between:
                    for other in others[i :: len(order)]:
                        _offer_and_overwrite(receiver, other, stored[other])
                assert _offer_and_overwrite(receiver, name, stored[name])
            if not rest_between:
                for other in others:
                    _offer_and_overwrite(receiver, other, stored[other])
            assert receiver.held_bytes == 0
            loaded = receiver.finish().tensors
            name = f"{target}.self_attn.indexer.wk_weights_proj.weight"
            assert differences({name: loaded[name]}, {name: expected[name]}) == []


def test_an_indexer_pair_on_a_layer_of_another_stage_is_ignored(tiny: Tiny) -> None:
    """The failure that this project began with: KeyError 'layers.0.self_attn.indexer.wk_weights_proj.weight'."""
    plan = _plan(tiny)
    stored = read_all(tiny("glm-5.1-fp8"))
    receiver = Receiver(plan, 1)
    for suffix in ("wk.weight", "wk.weight_scale_inv", "weights_proj.weight"):
        name = f"model.layers.0.self_attn.indexer.{suffix}"
        assert not receiver.offer(name, stored[name])
    assert receiver.held_bytes == 0
    assert not any(s.name.startswith("layers.0.") for s in plan.rank(1).specs)


def test_an_indexer_pair_of_the_mtp_layer_is_ignored_where_the_draft_does_not_live(tiny: Tiny) -> None:
    for plan, rank in ((_plan(tiny), 0), (_plan(tiny, drafts=0), 1)):
        stored = read_all(tiny("glm-5.1-fp8"))
        receiver = Receiver(plan, rank)
        for suffix in ("wk.weight", "wk.weight_scale_inv", "weights_proj.weight"):
            name = f"model.layers.6.self_attn.indexer.{suffix}"
            assert not receiver.offer(name, stored[name])
        assert not any("mtp" in s.name for s in plan.rank(rank).specs)


@pytest.mark.parametrize(("family", "tp"), [("glm-5.1-fp8", 4), ("deepseek-v3.2", 2), ("qwen2", 2)])
def test_everything_pushed_in_random_order_equals_everything_loaded(family: str, tp: int, tiny: Tiny) -> None:
    plan = _plan(tiny, family, tp=tp, drafts=0)
    stored = list(read_all(tiny(family)).items())
    for rank in range(plan.num_ranks):
        random.Random(rank).shuffle(stored)
        receiver = Receiver(plan, rank)
        for name, tensor in stored:
            _offer_and_overwrite(receiver, name, tensor)
        assert differences(receiver.finish().tensors, load_rank(plan, rank).tensors) == []


def test_only_what_an_operation_waits_for_is_held(tiny: Tiny) -> None:
    plan = _plan(tiny)
    stored = read_all(tiny("glm-5.1-fp8"))
    receiver = Receiver(plan, 1)
    receiver.offer(
        "model.layers.4.mlp.experts.0.gate_proj.weight", stored["model.layers.4.mlp.experts.0.gate_proj.weight"]
    )
    assert receiver.held_bytes == 0
    wk = stored["model.layers.4.self_attn.indexer.wk.weight"]
    receiver.offer("model.layers.4.self_attn.indexer.wk.weight", wk)
    assert receiver.held_bytes == wk.numel()


def test_finish_names_what_never_came(tiny: Tiny) -> None:
    plan = _plan(tiny)
    receiver = Receiver(plan, 1)
    missing = "model.layers.4.self_attn.indexer.wk.weight_scale_inv"
    for name, tensor in read_all(tiny("glm-5.1-fp8")).items():
        if name != missing:
            receiver.offer(name, tensor)
    with pytest.raises(LoadError, match=f"1 of .* tensors never came:\n  {missing}"):
        receiver.finish()


def test_what_the_plan_does_not_expect_is_refused(tiny: Tiny) -> None:
    receiver = Receiver(_plan(tiny), 1)
    norm = read_all(tiny("glm-5.1-fp8"))["model.norm.weight"]
    with pytest.raises(LoadError, match="no such tensor"):
        receiver.offer("model.norm.wight", norm)
    with pytest.raises(LoadError, match=r"offered as bfloat16 \[319\], expected BF16 \[320\]"):
        receiver.offer("model.norm.weight", norm[:-1])
    with pytest.raises(LoadError, match="offered as float32"):
        receiver.offer("model.norm.weight", norm.float())
    assert receiver.offer("model.norm.weight", norm)
    with pytest.raises(LoadError, match="offered twice"):
        receiver.offer("model.norm.weight", norm)
