"""A toy model, small enough to check by hand: each token is one more than the last, plus the sum of the stages' numbers.

It is run by real worker processes. Its stages carry the tokens themselves as ``hidden_states``, and check that what
they are given, positions and cache, is what belongs together. Its plan can also say where a stage goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loadmaster.architectures import Family, llama
from loadmaster.distributed.tensor import TensorGroup
from loadmaster.errors import ConfigError
from loadmaster.layers.step import Step
from loadmaster.parallel import ParallelLayout
from loadmaster.workers.grammars import GrammarError, Grammars

VOCAB = 97
BYTES_A_STAGE = 1000
REFUSED_SLOTS = 61 * 16
"""A cache of this many tokens does not fit the toy model's memory."""
BUILDER = "tests.workers.toy:ToyBuilder"


@dataclass(frozen=True)
class ToyRank:
    needed_bytes: int = BYTES_A_STAGE


@dataclass(frozen=True)
class ToyPlan:
    """What the engine needs of a plan.

    ``faults`` are names of methods of `Faults` (or ``nan``), by rank. ``disagree`` is a file that must not exist.
    ``arrivals`` is a folder where each rank leaves a file named by its process, once it has its plan. ``gates`` is a folder:
    a rank compiles a grammar (see `ToyMatcher`) once the folder has a file named by the grammar and the rank (``a-0``).
    """

    num_stages: int = 1
    num_slots: int = 1
    family: Family = llama.FAMILY
    model_path: Path = Path("/nowhere")
    faults: dict[int, str] = field(default_factory=dict)
    disagree: str | None = None
    arrivals: str | None = None
    gates: str | None = None
    eos: int | None = None
    max_model_len: int = 64

    @property
    def layout(self) -> ParallelLayout:
        return ParallelLayout(self.num_stages, self.num_slots)

    @property
    def config(self) -> dict[str, Any]:
        return {"max_position_embeddings": self.max_model_len, "vocab_size": VOCAB, "eos_token_id": self.eos}

    def rank(self, rank: int) -> ToyRank:
        return ToyRank()

    def to_json(self) -> bytes:
        names = ("num_stages", "num_slots", "faults", "disagree", "arrivals", "gates")
        return json.dumps({name: getattr(self, name) for name in names}).encode()


def continuation(prompt: list[int], num_stages: int, num_tokens: int) -> list[int]:
    """Return what the toy model answers: stage s adds s + 1."""
    step = sum(range(1, num_stages + 1))
    return [(prompt[-1] + step * (i + 1)) % VOCAB for i in range(num_tokens)]


class ToyBuilder:
    def __init__(self, plan: bytes) -> None:
        self.plan = json.loads(plan)
        self.hash = "a" * 64
        if arrivals := self.plan.get("arrivals"):
            (Path(arrivals) / str(os.getpid())).touch()
        if mark := self.plan["disagree"]:
            with contextlib.suppress(FileExistsError):
                Path(mark).touch(exist_ok=False)  # the first rank that comes here plans something else
                self.hash = "b" * 64

    def build(
        self, rank: int, device: str, on_progress: Callable[[int], None], group: TensorGroup | None = None
    ) -> ToyStage:
        on_progress(BYTES_A_STAGE // 2)
        fault = self.plan["faults"].get(str(rank), "")
        if fault.startswith("load"):
            getattr(Faults, fault)()
        on_progress(BYTES_A_STAGE - BYTES_A_STAGE // 2)
        if gates := self.plan.get("gates"):
            compile_behind_gates(Path(gates), rank)
        num_slots = self.plan["num_slots"]
        assert num_slots == (group.size if group else 1)
        assert rank % num_slots == (group.slot if group else 0)
        return ToyStage(rank // num_slots, self.plan["num_stages"], fault, group)


def compile_behind_gates(folder: Path, rank: int) -> None:
    """Let this process compile a grammar when there is a file for it."""

    def compile_grammar(self: Grammars, text: str) -> Any:
        while not (folder / f"{text}-{rank}").exists():
            time.sleep(0.01)
        if text == "wrong":
            raise GrammarError("the grammar is wrong")
        return ToyMatcher()

    Grammars._compile = compile_grammar  # type: ignore[method-assign]


class ToyMatcher:
    """A compiled grammar that every answer matches. Stands for llguidance's."""

    def deep_copy(self) -> ToyMatcher:
        return self

    def try_consume_tokens(self, token_ids: list[int]) -> int:
        return len(token_ids)

    def compute_bitmask(self) -> bytes:
        return b"\xff" * (4 * -(-VOCAB // 32))

    def is_accepting(self) -> bool:
        return False

    def is_stopped(self) -> bool:
        return False

    def is_error(self) -> bool:
        return False


class ToyStage:
    def __init__(self, rank: int, num_stages: int, fault: str, group: TensorGroup | None = None) -> None:
        self.rank = rank
        self.group = group
        self.fault = fault
        self.is_first, self.is_last = rank == 0, rank == num_stages - 1
        self.carries_in = () if self.is_first else ("hidden_states", "topk_indices")
        self.carries_out = () if self.is_last else ("hidden_states", "topk_indices")

        self.device = torch.device("cpu")
        self.draft = None
        self.vocab_size = VOCAB if self.is_last else 0

    def page_bytes(self, page_size: int) -> int:
        return 8 * page_size

    def new_cache(self, num_pages: int, page_size: int) -> torch.Tensor:
        if num_pages * page_size == REFUSED_SLOTS:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 61 bytes")
        return torch.full((num_pages * page_size,), -1)

    def forward(self, inputs: dict[str, torch.Tensor], step: Step, cache: torch.Tensor) -> dict[str, torch.Tensor]:
        cache[step.slots_T] = step.positions_T
        for context in step.contexts:
            assert cache[context.slots(self.device)].tolist() == list(range(context.length)), (
                "all earlier tokens are there"
            )
        if self.fault.startswith("step") and any(c.first for c in step.contexts):
            getattr(Faults, self.fault)()
        marks = step.positions_T[:, None].to(torch.int32).expand(-1, 3)
        if self.is_first:
            assert not inputs
            x_T1 = step.token_ids_T.to(torch.bfloat16)[:, None]
        else:
            x_T1 = inputs["hidden_states"]
            assert torch.equal(inputs["topk_indices"], marks)
        assert x_T1.shape == (step.num_tokens, 1)
        x_T1 = (x_T1 + self.rank + 1) % VOCAB
        if self.group is not None:  # the last rank of the stage has the sum, the others have nothing
            x_T1 = self.group.all_reduce(x_T1 if self.group.slot == self.group.size - 1 else torch.zeros_like(x_T1))
        if self.is_last:
            logits_RV = torch.nn.functional.one_hot(x_T1[step.logit_rows_R, 0].long(), VOCAB).float()
            return {"logits": logits_RV / 0 if self.fault == "nan" else logits_RV}
        return {"hidden_states": x_T1, "topk_indices": marks}


class Faults:
    """What a stage can do wrong: while it loads, or in the first step after the prompt."""

    @staticmethod
    def load_raises() -> None:
        raise OSError("the disk is on fire")

    @staticmethod
    def load_refuses() -> None:
        raise ConfigError("no such thing", hint="plan again")

    @staticmethod
    def load_killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def load_hangs() -> None:
        time.sleep(100_000)

    @staticmethod
    def step_raises() -> None:
        raise ValueError("a bug")

    @staticmethod
    def step_exits() -> None:
        os._exit(1)

    @staticmethod
    def step_killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def step_hangs() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(100_000)
