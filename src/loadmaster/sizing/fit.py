"""Which layouts of a model fit a number of devices: all legal ones, best first, and why the others do not do.

A layout is judged by its parameters (`loadmaster.sizing.weights`), with the layers divided as ``--layer-partition auto`` does,
and by the whole memory of the fullest rank of each stage. Of those that fit, the best is the one

1. whose tensor-parallel ranks, and ranks that divide experts, stay inside a host: they add up their outputs twice a layer;
2. whose step is shortest: the time in which each stage after another reads its parameters, and of communication, by the
   assumed figures below; steps within 10 % count as equal;
3. that gives each rank a slice of every expert, rather than whole experts, whose load depends on what is chosen;
4. with the most tokens in its KV cache.

The order needs no more than ratios of these figures. None was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Final

from loadmaster.architectures.targets import Engine
from loadmaster.errors import LayoutError, UnsupportedError
from loadmaster.findings import errors
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import Plan
from loadmaster.sizing.auto import costs_of, staged
from loadmaster.sizing.cuts import crossing
from loadmaster.sizing.memory import Memory, MemoryOptions, measure
from loadmaster.sizing.partition import balanced
from loadmaster.sizing.verdict import findings
from loadmaster.sizing.weights import Weights, WeightSizes

BYTES_PER_S: Final = 3.35e12
"""Memory bandwidth where no device is named: an H100's."""

SUM_S: Final = {False: 15e-6, True: 60e-6}
"""Seconds of a sum over ranks inside a host, and across hosts: assumed."""

HOP_S: Final = {False: 30e-6, True: 100e-6}
"""Seconds from one stage to the next: assumed."""

MOST_DEVICES: Final = 64
"""The largest machine that is looked for. Smaller ones are parts of a host that divide it, and whole hosts."""


@dataclass(frozen=True, slots=True)
class Machine:
    """``device_bytes`` of each device, in the order of the ranks; ``per_host`` of them share a host."""

    device_bytes: tuple[int, ...]
    per_host: int = 8
    bytes_per_s: float = BYTES_PER_S

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return len(self.device_bytes)


@dataclass(frozen=True)
class Candidate:
    """A legal layout. ``refused`` says why it does not fit; None: it does.

    ``resident_bytes`` are the parameters of the fullest rank of each stage on its device, ``host_bytes`` those in the memory of
    the host, ``replicated_bytes`` what all devices hold more than once, ``crosses`` what passes each cut, with its bytes a token.
    ``step_s`` is for comparison alone.
    """

    layout: ParallelLayout
    memory: Memory
    resident_bytes: tuple[int, ...]
    replicated_bytes: int
    crosses: tuple[tuple[tuple[str, int], ...], ...]
    spans_hosts: bool
    step_s: float
    refused: str | None
    host_bytes: tuple[int, ...] = ()

    @property
    def crossing_bytes(self) -> int:
        """Bytes of one token that cross all cuts."""
        return sum(size for cut in self.crosses for _, size in cut)


@dataclass(frozen=True, slots=True)
class Illegal:
    """A layout that is not possible for this model or engine, and why."""

    layout: ParallelLayout
    why: str


@dataclass(frozen=True)
class Fit:
    """Layouts that fit, best first; legal ones that do not; illegal ones; and the best on the smallest machine that does."""

    machine: Machine
    fitting: tuple[Candidate, ...]
    too_small: tuple[Candidate, ...]
    illegal: tuple[Illegal, ...]
    smallest: Candidate | None


class Fitter:
    """Judges layouts of one model. ``plan`` may have any layout, with the MTP layers that are wanted."""

    def __init__(self, plan: Plan, engine: Engine, options: MemoryOptions) -> None:
        self._plan, self._engine, self._options = plan, engine, options
        self._sizes = WeightSizes(plan)
        self._has_experts = any(t.experts for kind in plan.schema.kinds.values() for t in kind)
        self._tables = plan.layout.tables, plan.layout.tables_across_dp
        self._alone: Weights = self._sizes.at(
            ParallelLayout(tables=plan.layout.tables, multimodal=plan.layout.multimodal)
        )

    def fit(self, machine: Machine) -> Fit:
        """Judge all layouts over a machine's devices, and find the smallest machine of such devices."""
        legal, illegal = self._judge_all(machine)
        fitting = tuple(c for c in legal if c.refused is None)
        too_small = tuple(c for c in legal if c.refused is not None)
        return Fit(machine, fitting, too_small, tuple(illegal), self._smallest(machine))

    def _judge_all(self, machine: Machine) -> tuple[list[Candidate], list[Illegal]]:
        """Return the legal layouts over a machine's devices, best first, and the others."""
        legal: list[Candidate] = []
        illegal: list[Illegal] = []
        for layout in self._layouts(machine.num_devices):
            try:
                legal.append(self._judge(layout, machine))
            except (LayoutError, UnsupportedError) as error:
                illegal.append(Illegal(layout, error.message))
        return sorted(legal, key=_order), illegal

    def _layouts(self, num_devices: int) -> Iterator[ParallelLayout]:
        drafts, (tables, across) = self._plan.layout.num_draft_layers, self._tables
        for stage_size in _divisors(num_devices):
            for tensor in _divisors(stage_size):
                for whole_experts in (False, True) if self._has_experts and stage_size > 1 else (False,):
                    yield ParallelLayout(
                        num_devices // stage_size,
                        tensor,
                        whole_experts,
                        num_draft_layers=drafts,
                        data_parallel_size=stage_size // tensor,
                        tables=tables,
                        tables_across_dp=across,
                        multimodal=self._plan.layout.multimodal,
                    )

    def _judge(self, layout: ParallelLayout, machine: Machine) -> Candidate:
        num_layers, stages = len(self._plan.schema.layers), layout.pipeline_parallel_size
        if self._engine == "native" and layout.data_parallel_size > 1:
            raise UnsupportedError("the native engine does not run with data parallelism yet")
        if stages > num_layers:
            raise LayoutError(f"{stages} pipeline stages for {num_layers} layers")
        weights = self._sizes.at(layout)
        devices = (machine.device_bytes[0],) if len(set(machine.device_bytes)) == 1 else machine.device_bytes
        options = replace(self._options, device_bytes=devices)
        counts = None
        if stages > 1:
            costs = costs_of(replace(self._plan, layout=layout), weights, self._engine, options)
            counts = balanced(costs, stages)
        plan = staged(self._plan, layout, counts)
        resident = tuple(weights.stage(first, end) for first, end in plan.stages)
        fullest = {plan.layout.stage_ranks(stage)[0]: size for stage, size in enumerate(resident)}
        if len(devices) > 1:  # the fullest rank's device is the smallest of its stage
            least = list(devices)
            for stage in range(stages):
                ranks = plan.layout.stage_ranks(stage)
                least[ranks[0]] = min(devices[r] for r in ranks)
            options = replace(options, device_bytes=tuple(least))
        last = plan.layout.stage_ranks(stages - 1)[0]
        host = tuple(weights.host.stage(first, end) if weights.host else 0 for first, end in plan.stages)
        tables = dict(zip(fullest, host, strict=True))
        drafts = {last: weights.drafts}
        memory = measure(plan, fullest, self._engine, options, draft_bytes=drafts, host_bytes=tables)
        refused = errors(tuple(findings(memory)))
        return Candidate(
            plan.layout,
            memory,
            resident,
            sum(resident) * layout.stage_size - self._alone.stage(0, num_layers),
            tuple(crossing(plan, first) for first, _ in plan.stages[1:]),
            spans_hosts(layout, machine.per_host, has_experts=self._has_experts),
            self._step_s(layout, weights, resident, machine),
            refused[0].message if refused else None,
            host,
        )

    def _step_s(self, layout: ParallelLayout, weights: Weights, resident: Sequence[int], machine: Machine) -> float:
        """Return the time of a step, for comparison: stages one after another, sums over ranks, and hops between stages."""
        spans = spans_hosts(layout, machine.per_host, has_experts=self._has_experts)
        sums = 2 * len(weights.layers) * SUM_S[spans] if layout.stage_size > 1 else 0.0
        hops = (layout.pipeline_parallel_size - 1) * HOP_S[layout.num_ranks > machine.per_host]
        return (sum(resident) - weights.embedding) / machine.bytes_per_s + sums + hops

    def _smallest(self, machine: Machine) -> Candidate | None:
        device = min(machine.device_bytes)
        whole = self._alone.stage(0, len(self._plan.schema.layers)) - self._alone.drafts
        hosts = range(2 * machine.per_host, MOST_DEVICES + 1, machine.per_host)
        for num_devices in (*_divisors(machine.per_host), *hosts):
            if num_devices * device < whole:
                continue
            legal, _ = self._judge_all(replace(machine, device_bytes=(device,) * num_devices))
            if (best := next((c for c in legal if c.refused is None), None)) is not None:
                return best
        return None


def spans_hosts(layout: ParallelLayout, per_host: int, *, has_experts: bool) -> bool:
    """Return whether ranks that add up their outputs are on different hosts; ranks are placed in order, ``per_host`` on each.

    >>> [spans_hosts(ParallelLayout(2, 8), n, has_experts=False) for n in (8, 4)]
    [False, True]
    """
    groups = [layout.stage_ranks(stage) for stage in range(layout.pipeline_parallel_size)]
    if not has_experts or layout.data_parallel_size == 1:
        size = layout.tensor_parallel_size
        groups = [ranks[start : start + size] for ranks in groups for start in range(0, len(ranks), size)]
    return any(ranks[0] // per_host != ranks[-1] // per_host for ranks in groups)


def _order(c: Candidate) -> tuple[bool, int, bool, int, int]:
    steps = round(log(max(c.step_s, 1e-9)) / log(1.1))
    return c.spans_hosts, steps, c.layout.enable_expert_parallel, -(c.memory.num_tokens or 0), c.layout.num_ranks


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)
