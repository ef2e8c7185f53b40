"""Tensors that are pushed into a model that was loaded before: what is passed on, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loadmaster.checkpoint import Signature
from loadmaster.errors import LoadError, UsageError
from loadmaster.integrations.vllm.reload import SHOWN, check_found, received, remember

A, B = Signature("BF16", (2, 3)), Signature("F32", (4,))


@pytest.fixture
def model() -> Any:
    made = SimpleNamespace()
    remember(made, {"a": A, "b": B})  # type: ignore[arg-type]
    return made


def tensor(signature: Signature) -> torch.Tensor:
    return torch.ones(signature.shape, dtype={"BF16": torch.bfloat16, "F32": torch.float32}[signature.dtype])


def test_any_order_will_do_and_what_is_another_ranks_is_left_out(model: Any) -> None:
    pushed = [("b", tensor(B)), ("layers.9.other", tensor(A)), ("a", tensor(A))]
    assert [(name, t) for name, t in received(model, pushed)] == [pushed[0], pushed[2]]


def test_what_never_came_is_named_after_the_last(model: Any) -> None:
    passed = received(model, [("b", tensor(B))])
    assert next(passed)[0] == "b"
    with pytest.raises(LoadError, match=r"1 of 2 tensors did not arrive:\n\n  a  BF16 \[2, 3\]"):
        next(passed)


@pytest.mark.parametrize(
    ("pushed", "message"),
    [
        ([("a", tensor(B))], r"a arrived as float32 \[4\], expected BF16 \[2, 3\]"),
        ([("a", tensor(A).float())], r"a arrived as float32 \[2, 3\], expected BF16"),
        ([("a", tensor(A)), ("a", tensor(A))], "a arrived twice"),
    ],
)
def test_other_shapes_formats_and_a_second_time_are_refused(
    model: Any, pushed: list[tuple[str, torch.Tensor]], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        list(received(model, pushed))


def test_a_model_that_was_not_proven_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="was not proven"):
        received(SimpleNamespace(), [])


def test_a_checkpoint_must_have_what_the_model_was_loaded_from() -> None:
    check_found({"a": A}, {"a": A, "more": B}, "rank 0")
    with pytest.raises(
        LoadError,
        match=r"rank 0: cannot reload: 2 tensors .*\n\n  a  BF16 \[2, 3\]: F32 \[4\]\n  b .*not in the",
    ):
        check_found({"a": A, "b": B}, {"a": B}, "rank 0")
    many = {f"t{i}": A for i in range(SHOWN + 3)}
    with pytest.raises(LoadError, match="and 3 more"):
        check_found(many, {}, "rank 0")
