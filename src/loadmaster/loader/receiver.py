"""Tensors that are pushed instead of read, by the same plan.

The caller may push in any order and over any number of calls, and may reuse its buffers: none of the caller's memory is kept.
Where an operation still waits for an operand, the part that this rank needs is copied.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Literal, overload

import torch

from loadmaster.architectures.algebra import whole
from loadmaster.arguments import expect
from loadmaster.errors import LoadError
from loadmaster.loader.completeness import Completeness
from loadmaster.loader.memory import Arena
from loadmaster.loader.operations import destination, evaluate, fill, naming, view_of
from loadmaster.loader.report import LoadedRank, LoadReport
from loadmaster.plan import Plan, ProvenPlan, admit
from loadmaster.plan.moves import MoveGroup
from loadmaster.torch_dtypes import TORCH


class Receiver:
    """Receives one rank's tensors.

    Call `offer` with each stored tensor, whole and under its name in the checkpoint; then `finish`. No parameter is available
    before that, and an incomplete rank is never returned. ``plan`` and ``allow_unproven`` are as for `load_rank`.

    Raises:
        PlanError: the plan was not proven; carries its findings.
        ArgumentError: the layout has no such rank.
    """

    @overload
    def __init__(self, plan: ProvenPlan, rank: int = ...) -> None: ...

    @overload
    def __init__(self, plan: Plan, rank: int = ..., *, allow_unproven: Literal[True]) -> None: ...

    def __init__(self, plan: Plan, rank: int = 0, *, allow_unproven: bool = False) -> None:
        self._begin = time.perf_counter()
        self._plan = plan = admit(plan, allow_unproven=allow_unproven)
        self._derived = plan.rank(rank)
        self._arena = Arena(self._derived.specs, rank=rank)
        self._uses: dict[int, list[tuple[MoveGroup, int, int]]] = defaultdict(list)  # tensor -> group, place, view
        for group in self._derived.groups:
            if group.is_fill:
                fill(self._arena.tensors, self._derived, group)
        for group, place in self._derived.moves():
            for view in range(len(group.views)):
                self._uses[int(group.tensors[place, view])].append((group, place, view))
        self._came: set[int] = set()
        self._held: dict[tuple[int, int], dict[int, torch.Tensor]] = {}  # operands that wait, by (group, place)
        self._done_bytes = 0  # of the plan
        self._finished = False

    def offer(self, name: str, tensor: torch.Tensor) -> bool:
        """Take what this rank needs of a stored tensor. Return whether it needs any of it.

        A tensor that only other ranks need, or that is waived, is ignored. The caller may overwrite the memory as soon as
        the call returns.

        Raises:
            ArgumentError: ``name`` is not a string, or ``tensor`` is not a tensor.
            LoadError: the checkpoint has no such tensor, its shape or dtype differs, or it was offered before.
        """
        expect("name", name, str, "the name of a stored tensor")
        expect("tensor", tensor, torch.Tensor, "a tensor")
        if self._finished:
            raise LoadError(f"{name} was offered after finish()")
        number = self._plan.checkpoint.table.ids.get(name)
        if number is None:
            raise LoadError(f"{name} was offered, and the plan's checkpoint has no such tensor")
        uses = self._uses.get(number)
        if not uses:
            return False
        signature = self._plan.checkpoint.table.signatures[self._plan.checkpoint.table.signature[number]]
        if tuple(tensor.shape) != signature.shape or tensor.dtype != TORCH[signature.dtype]:
            raise LoadError(
                f"{name} was offered as {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, "
                f"expected {signature.dtype} {list(signature.shape)}"
            )
        if number in self._came:
            raise LoadError(f"{name} was offered twice")
        source = tensor.detach().contiguous()
        for group, place, view in uses:
            part = view_of(group.views[view], source)
            if len(group.views) == 1:
                self._write(group, place, [part])
                continue
            waiting = self._held.setdefault((id(group), place), {})
            waiting[view] = part.clone()
            if len(waiting) == len(group.views):
                del self._held[id(group), place]
                self._write(group, place, [waiting[i] for i in range(len(group.views))])
        self._came.add(number)
        return True

    def _write(self, group: MoveGroup, place: int, operands: list[torch.Tensor]) -> None:
        source = group.piece.source
        target = destination(self._arena.tensors, self._derived, group, place, whole(source.shape))
        with naming(self._derived.rank, self._plan.checkpoint.table.names[int(group.tensors[place, 0])]):
            target.copy_(evaluate(source, iter(operands)))
        self._done_bytes += group.needed_bytes // len(group.params)

    @property
    def held_bytes(self) -> int:
        """Bytes held for operations that still wait for an operand."""
        return sum(t.numel() * t.element_size() for waiting in self._held.values() for t in waiting.values())

    def finish(self) -> LoadedRank:
        """Return the rank, when it is complete.

        Raises:
            LoadError: tensors are missing; names them.
        """
        missing = [self._plan.checkpoint.table.names[i] for i in self._uses if i not in self._came]
        if missing:
            shown = "\n".join(f"  {name}" for name in sorted(missing)[:10])
            more = f"\n  … and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise LoadError(
                f"rank {self._derived.rank}: {len(missing)} of {len(self._uses)} tensors never came:\n{shown}{more}"
            )
        complete = Completeness({self._derived.rank: self._derived})
        complete.advance(self._done_bytes)
        complete.check({self._derived.rank: self._arena.tensors})
        self._finished = True
        derived = self._derived
        report = LoadReport(
            rank=derived.rank,
            needed_bytes=derived.needed_bytes,
            fetched_bytes=0,
            resident_bytes=derived.num_bytes,
            direct_bytes=0,
            staged_bytes=0,
            staging_bytes=0,
            num_readers=0,
            num_reads=0,
            seconds=time.perf_counter() - self._begin,
        )
        return LoadedRank(derived.specs, self._arena.tensors, report)
