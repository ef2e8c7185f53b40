"""The parallel layout and the coordinates of its ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from loadmaster.arguments import expect, expect_int, expect_integer, shown
from loadmaster.errors import LayoutError
from loadmaster.limits import EXPERTS, RANKS
from loadmaster.parallel.placement import deal, legal_counts

ExpertPlacement = Literal["linear", "round_robin"]
_SAID_IF_SET: Final = ("tables", "tables_across_dp", "multimodal")
"""Fields that few models have a use for; the JSON of a layout has them only if they are set."""

EXPERT_PLACEMENTS: Final[tuple[ExpertPlacement, ...]] = ("linear", "round_robin")


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Where a rank stands: pipeline stage, tensor-, data- and expert-parallel rank (0 where experts are not divided).

    ``stage_slot`` is its number among the ranks of its stage: ``dp_rank * tensor_parallel_size + tp_rank``.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    dp_rank: int
    ep_rank: int
    stage_slot: int


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """Pipeline × tensor × data parallelism, with vLLM's names and numbering.

    ``rank = (dp_rank * pp_size + pp_rank) * tp_size + tp_rank``. Attention and dense layers are replicated over the
    data-parallel ranks; routed experts are divided over tensor × data ranks of a stage: each expert sliced, or with
    ``enable_expert_parallel`` whole experts dealt out (expert parallel size = tensor × data parallel size, never a
    separate axis). ``expert_placement`` deals them in runs (``linear``) or in turns (``round_robin``), with
    ``num_redundant_experts`` copies, of the first experts, after the last. ``layer_partition`` gives the number of layers
    of each stage; without it they are divided evenly. ``num_draft_layers`` MTP layers are loaded on the last stage;
    one that is stored as several blocks counts once.
    ``tables`` puts all tables that may be in the memory of the host there, or on the devices; without it each is where it
    usually is. With ``tables_across_dp`` their rows are divided over tensor × data ranks, so that a stage holds each once.
    With ``multimodal`` the ranks of the first stage hold what is stored outside the language model, each all of it.

    Raises:
        ArgumentError: a value is not of its kind.
        LayoutError: a size below one, more ranks than `RANKS`, a partition whose length is not the number of stages,
            or redundant experts where experts are not divided.
    """

    pipeline_parallel_size: int = 1
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
    layer_partition: tuple[int, ...] | None = None
    num_draft_layers: int = 0
    data_parallel_size: int = 1
    expert_placement: ExpertPlacement = "linear"
    num_redundant_experts: int = 0
    tables: Literal["host", "device"] | None = None
    tables_across_dp: bool = False
    multimodal: bool = False

    def __post_init__(self) -> None:
        for name in ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"):
            if expect_integer(name, getattr(self, name)) < 1:
                raise LayoutError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.num_ranks > RANKS.value:
            raise LayoutError(f"the layout has {RANKS.exceeded(self.num_ranks)}", hint=RANKS.hint)
        expect("enable_expert_parallel", self.enable_expert_parallel, bool, "True or False")
        if expect_integer("num_draft_layers", self.num_draft_layers) < 0:
            raise LayoutError(f"num_draft_layers is {self.num_draft_layers}, expected at least 0")
        parts = self.layer_partition
        for part in expect("layer_partition", parts, (tuple, type(None)), "a tuple of numbers of layers") or ():
            expect_integer("layer_partition", part)
        if parts is not None and len(parts) != self.pipeline_parallel_size:
            raise LayoutError(
                f"the layer partition {','.join(map(str, parts))} has {len(parts)} stages, "
                f"expected pipeline_parallel_size = {self.pipeline_parallel_size}",
                hint="give one number of layers for each pipeline stage",
            )
        expect("expert_placement", self.expert_placement, str, "its name")
        if self.expert_placement not in EXPERT_PLACEMENTS:
            raise LayoutError(
                f"the expert placement {self.expert_placement!r} is not known",
                hint=f"known: {', '.join(EXPERT_PLACEMENTS)}",
            )
        if expect_integer("num_redundant_experts", self.num_redundant_experts) < 0:
            raise LayoutError(f"num_redundant_experts is {self.num_redundant_experts}, expected at least 0")
        if self.tables not in (None, "host", "device"):
            raise LayoutError(f"tables is {shown(self.tables)}, expected 'host', 'device' or None")
        expect("tables_across_dp", self.tables_across_dp, bool, "True or False")
        expect("multimodal", self.multimodal, bool, "True or False")
        if not self.enable_expert_parallel and (self.num_redundant_experts or self.expert_placement != "linear"):
            raise LayoutError(
                "redundant experts and their placement are of whole experts, and every rank holds a slice of each",
                hint="add --enable-expert-parallel",
            )

    @property
    def num_ranks(self) -> int:
        """Ranks in all: data × pipeline × tensor size."""
        return self.pipeline_parallel_size * self.stage_size

    @property
    def stage_size(self) -> int:
        """Ranks of one stage: tensor × data size, over which experts are divided."""
        return self.tensor_parallel_size * self.data_parallel_size

    def coordinate(self, rank: int) -> Coordinate:
        """Return where ``rank`` stands.

        >>> ParallelLayout(2, 4, enable_expert_parallel=True).coordinate(6)
        Coordinate(rank=6, pp_rank=1, tp_rank=2, dp_rank=0, ep_rank=2, stage_slot=2)

        Raises:
            ArgumentError: the layout has no such rank.
        """
        expect_int("rank", rank, 0, self.num_ranks - 1)
        replica, tp_rank = divmod(rank, self.tensor_parallel_size)
        dp_rank, pp_rank = divmod(replica, self.pipeline_parallel_size)
        stage_slot = dp_rank * self.tensor_parallel_size + tp_rank
        return Coordinate(rank, pp_rank, tp_rank, dp_rank, stage_slot if self.enable_expert_parallel else 0, stage_slot)

    def stage_ranks(self, pp_rank: int) -> tuple[int, ...]:
        """Return the ranks of a pipeline stage, in order of their stage slots.

        >>> ParallelLayout(2, 2, data_parallel_size=2).stage_ranks(1)
        (2, 3, 6, 7)

        Raises:
            ArgumentError: the layout has no such stage.
        """
        expect_int("pp_rank", pp_rank, 0, self.pipeline_parallel_size - 1)
        return tuple(
            (dp_rank * self.pipeline_parallel_size + pp_rank) * self.tensor_parallel_size + tp_rank
            for dp_rank in range(self.data_parallel_size)
            for tp_rank in range(self.tensor_parallel_size)
        )

    def axes(self, stage_slot: int) -> dict[str, tuple[int, int]]:
        """Return the coordinates of a stage slot, for `localise`: axis -> (index, size).

        ``tp`` divides attention and dense layers, ``moe`` slices experts, ``ep`` deals them out.

        Raises:
            ArgumentError: a stage has no such slot.
        """
        expect_int("stage_slot", stage_slot, 0, self.stage_size - 1)
        among = (stage_slot, self.stage_size)
        return {"tp": (stage_slot % self.tensor_parallel_size, self.tensor_parallel_size), "moe": among, "ep": among}

    def expert_slots(self, num_experts: int) -> tuple[int, ...]:
        """Return the expert in each slot of a stage, by stage slot: `held_slots` gives the run of it that a stage slot holds.

        >>> ParallelLayout(1, 2, enable_expert_parallel=True, expert_placement="round_robin").expert_slots(4)
        (0, 2, 1, 3)
        >>> ParallelLayout(1, 2, enable_expert_parallel=True, num_redundant_experts=2).expert_slots(4)
        (0, 1, 2, 3, 0, 1)

        >>> ParallelLayout(1, 4, enable_expert_parallel=True, expert_placement="round_robin").expert_slots(6)
        (0, 4, 1, 5, 2, 3)

        Raises:
            LayoutError: there are more ranks than experts, or redundant ones do not divide; the hint says what would.
        """
        expect_int("num_experts", num_experts, 1, EXPERTS.value)
        if not self.enable_expert_parallel:
            return tuple(range(num_experts))
        slots = [i % num_experts for i in range(num_experts + self.num_redundant_experts)]
        size = self.stage_size
        if len(slots) < size or (len(slots) % size and self.num_redundant_experts):
            among = f"{len(slots)} experts" + (", redundant ones included," if self.num_redundant_experts else "")
            legal = ", ".join(map(str, legal_counts(len(slots))))
            sizes = legal if self.num_redundant_experts else f"1 to {num_experts}"
            raise LayoutError(
                f"{among} cannot be dealt out evenly to {size} ranks",
                hint=f"legal sizes here: {sizes}; or {-num_experts % size} redundant experts",
                code="layout-indivisible",
            )
        if self.expert_placement == "round_robin":
            return tuple(slot for place in range(size) for slot in slots[place::size])
        return tuple(slots)

    def held_slots(self, num_slots: int, stage_slot: int) -> tuple[int, int]:
        """Return the expert slots, half open, of a stage slot where whole experts are distributed; the first may hold one more.

        >>> [ParallelLayout(1, 4, enable_expert_parallel=True).held_slots(6, s) for s in range(4)]
        [(0, 2), (2, 4), (4, 5), (5, 6)]
        """
        return deal(num_slots, self.stage_size, stage_slot) if self.enable_expert_parallel else (0, num_slots)

    def as_json(self) -> dict[str, Any]:
        """Return the layout as JSON values under its own field names."""
        value = {k: v for k, v in asdict(self).items() if k not in _SAID_IF_SET or v}
        return value | {"layer_partition": list(self.layer_partition) if self.layer_partition is not None else None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ParallelLayout:
        """Return the layout that `as_json` gave."""
        parts = value["layer_partition"]
        return cls(**{**value, "layer_partition": tuple(parts) if parts is not None else None})
