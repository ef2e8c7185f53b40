"""Direct writing: a rank's plan for vLLM's parameters, proven before vLLM allocates, and its bytes read into place.

If a target describes this vLLM's parameters of a family (`loadmaster.architectures.targets`), vLLM's ``load_weights`` is not
needed: each byte is read from where the headers say to where the plan says. Three checks come first, in this order:

1. Is vLLM's configuration described (`check_fit`)? If not, everything is streamed.
2. Is the plan proven (`prove_layout`)? Certain defects are refused before memory is allocated; if vLLM may judge a finding
   differently, everything is streamed, and vLLM and the proof after loading decide.
3. Does the built model have the parameters that the plan fills, and no others (`misfits`)? If not, everything is streamed.

What a target leaves to vLLM is streamed beside it (`Planned.left`): towers of a model around a language model, and parameters
that vLLM computes while it loads.

This module reads vLLM's configs and modules, but does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from loadmaster.architectures.registry import find_family
from loadmaster.architectures.targets import VLLM, target_of_vllm
from loadmaster.checkpoint import Checkpoint, LocalStore
from loadmaster.checkpoint.lookalike import CONFIG
from loadmaster.errors import ConfigError, LayoutError
from loadmaster.integrations.vllm.built_model import held_experts
from loadmaster.integrations.vllm.options import Options
from loadmaster.loader import LoadReport, load_rank, load_ranks
from loadmaster.loader.cuda.ring import Ring
from loadmaster.loader.memory import misfit
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ParamSpec, ProvenPlan, RankPlan
from loadmaster.plan.claims import KV_CACHE_SCALES
from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.towers import ids_outside


class Unfit(Exception):  # noqa: N818  # not a failure: parameters are streamed instead
    """Why the parameters are not written directly."""


@dataclass(frozen=True)
class Planned:
    """A proven plan, this rank's number in it, and whether the model is the draft model of the planned one."""

    plan: ProvenPlan
    rank: int
    is_draft: bool = False

    @property
    def stage_slot(self) -> int:
        """The rank's number among the ranks of its stage, over which experts are divided."""
        return self.plan.layout.coordinate(self.rank).stage_slot

    @cached_property
    def derived(self) -> RankPlan:
        """The rank's part of the plan."""
        return self.plan.rank(self.rank)

    @cached_property
    def params(self) -> tuple[tuple[ParamSpec, str], ...]:
        """The parameters that are written, each with its name in vLLM's model.

        A draft model has only its own layers; vLLM adds what it shares with the model later.
        """
        if not self.is_draft:
            return tuple((s, s.name) for s in self.derived.specs)
        held = [s for s in self.derived.specs if s.alias is None]
        return tuple(
            (s, self._called(s.name.removeprefix(within), number, layer) or s.name)
            for number, layer in enumerate(self.derived.draft_layers)
            for within in (self.plan.named("{draft}.", layer),)
            for s in held
            if s.name.startswith(within)
        )

    def _called(self, inside: str, number: int, layer: int) -> str | None:
        """Return the name in the draft model of a parameter of draft ``number``, stored as ``layer``; None: the planned one."""
        renamed = self.plan.target.draft_names
        begins = ((old, new.format(number=number, layer=layer)) for old, new in renamed if inside.startswith(old))
        return next((new + inside.removeprefix(old) for old, new in begins), None)

    @property
    def within(self) -> str:
        """The prefix of all parameters of the planned model in vLLM's; a draft model has no others."""
        return "" if self.is_draft else self.plan.target.within

    @cached_property
    def computed(self) -> frozenset[str]:
        """The parameters that vLLM computes from what is planned for them."""
        target, num_layers = self.plan.target, len(self.plan.schema.layers)
        layers = range(*self.derived.layers)
        names = {target.named(param, layer, num_layers) for param in target.computed for layer in layers}
        return frozenset(names.intersection(s.name for s, _ in self.params))

    @property
    def tensors(self) -> list[int]:
        """The ids of the stored tensors that are read, ascending."""
        return _ascending(self.derived.only({spec.name for spec, _ in self.params}).groups)

    def stored_parts(self, name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of a parameter that are planned from stored tensors: all but constants."""
        number = next(i for i, s in enumerate(self.derived.specs) if s.name == name)
        boxes = [g.piece.box for g in self.derived.groups if number in g.params and not g.is_fill]
        return [tensor[tuple(slice(*side) for side in box)] for box in boxes]

    def left(self, model: torch.nn.Module) -> list[int]:
        """Return the ids of the stored tensors that are left to vLLM's own loader, ascending.

        They are those of computed parameters, and those outside the language model where ``model`` has more than that.
        """
        derived, plan = self.derived, self.plan
        computed = [b for b in derived.groups if derived.specs[b.params[0]].name in self.computed]
        names = {name for _, name in self.params}
        has_more = any(not (n.startswith(self.within) or n in names) for n, _ in model.named_parameters())
        beside = ids_outside(plan.family, plan.checkpoint.table) if has_more else ()
        return sorted({*_ascending(computed), *beside})


def _ascending(groups: Iterable[MoveGroup]) -> list[int]:
    ids = (b.tensors.reshape(-1).tolist() for b in groups)
    return sorted(set(chain.from_iterable(ids)))


def check_fit(vllm_config: Any, model_config: Any, checkpoint: Checkpoint, model_class: type, version: str) -> None:
    """Check that vLLM's configuration is described.

    Raises:
        Unfit: something is not described; the message names it.
    """
    if reason := next(_unfit(vllm_config, model_config, checkpoint, model_class, version), None):
        raise Unfit(reason)


def _unfit(vllm_config: Any, model: Any, checkpoint: Checkpoint, model_class: type, version: str) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    config = checkpoint.config or {}
    target = target_of_vllm(version)
    if target is None:
        yield f"this is vLLM {version}, which is not described: {', '.join(VLLM)} are"
        return
    is_draft = model.runner_type == "draft"
    if model.runner_type != "generate" and not is_draft:
        yield f"a model for {model.runner_type}"
    if vllm_config.lora_config is not None:
        yield "LoRA"
    for name in ("prefill_context_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            yield name
    offload = vllm_config.offload_config
    if offload.uva.cpu_offload_gb or offload.prefetch.offload_group_size:
        yield "offloading"
    if vllm_config.model_config.hf_overrides:  # those of a draft model come from vLLM
        yield "hf_overrides"
    if model.hf_config_path is not None:
        yield "hf_config_path"
    read = ("auto", "hf") if (checkpoint.path / CONFIG).exists() else ("auto", "mistral")
    if model.config_format not in read:
        yield f"a config in the format {model.config_format}"
    architectures = config.get("architectures")
    used = list(getattr(model.hf_config, "architectures", None) or [])
    if not architectures or (used != architectures and not is_draft):
        yield "vLLM uses another architecture than config.json names"
        return
    described, family = None, None
    if architectures[0] in (*VLLM[target].described, *VLLM[target].around):
        try:
            family = find_family(config)
        except ConfigError as error:
            yield error.message  # of a language model inside another that is not known
            return
        described = VLLM[target].find(family, architectures[0])
    classes = () if described is None else described.drafts if is_draft else described.classes
    if not classes:
        yield f"{f'a draft of {architectures[0]}' if is_draft else architectures[0]} is not described for {target}"
    elif model_class.__name__ not in classes or not model_class.__module__.startswith("vllm."):
        yield f"{architectures[0]} is built as {model_class.__module__}.{model_class.__name__}"
    stored = family.describe(config).values.get("quantization_config") if family and described else None
    method = stored.get("quant_method") if isinstance(stored, Mapping) else None
    if model.quantization != (described.methods.get(str(method), method) if described else method):
        yield f"quantization is {model.quantization}, but {method} in config.json"


def layout_of(
    vllm_config: Any, num_layers: Sequence[int], pp: tuple[int, int], tp: tuple[int, int], *, is_draft: bool = False
) -> tuple[ParallelLayout, int]:
    """Return vLLM's layout, and this rank's number in it.

    ``num_layers`` are the numbers of layers of the stages, as vLLM divides them; ``pp`` and ``tp`` are (rank, size) in its
    groups.

    Raises:
        Unfit: plans do not support the layout.
    """
    parallel = vllm_config.parallel_config
    if is_draft and pp[0] != pp[1] - 1:
        raise Unfit("a draft model on another stage than the last")
    spread = bool(parallel.enable_expert_parallel)
    try:
        layout = ParallelLayout(
            pipeline_parallel_size=pp[1],
            tensor_parallel_size=tp[1],
            enable_expert_parallel=spread,
            layer_partition=tuple(num_layers),
            num_draft_layers=int(is_draft),
            data_parallel_size=parallel.data_parallel_size,
            expert_placement=parallel.expert_placement_strategy if spread else "linear",
            num_redundant_experts=parallel.eplb_config.num_redundant_experts if parallel.enable_eplb else 0,
        )
    except LayoutError as error:
        raise Unfit(error.message) from error
    return layout, (parallel.data_parallel_rank * pp[1] + pp[0]) * tp[1] + tp[0]


def write(planned: Planned, model: torch.nn.Module, options: Options, ring: Ring | None = None) -> LoadReport:
    """Read every byte of a model without misfits directly into its parameters, on a GPU through ``ring``.

    Raises:
        LoadError: a file changed, ended early or could not be read.
    """
    memory = _memory(model)
    tensors = {spec.name: memory[name].detach() for spec, name in planned.params}
    device = next((t.device for t in tensors.values()), torch.device("cpu"))
    plan, rank = planned.plan, planned.rank
    readers, staging_bytes = options.num_readers, options.staging_bytes
    with LocalStore(plan.model_path, readahead=False) as store:
        if device.type == "cuda":
            loaded = load_ranks(
                plan,
                {rank: device},
                tensors={rank: tensors},
                store=store,
                ring=ring,
                num_readers=readers,
                staging_bytes=staging_bytes,
            )[rank]
        else:
            loaded = load_rank(
                plan, rank, tensors=tensors, store=store, num_readers=readers, staging_bytes=staging_bytes
            )
    return loaded.report


def misfits(planned: Planned, model: torch.nn.Module, may_stay: Callable[[str], bool]) -> Iterator[str]:
    """Yield how a built model differs from its plan; ``may_stay`` says which parameters need not be written."""
    params = dict(model.named_parameters(remove_duplicate=False))
    yield from _spec_misfits(planned.params, _memory(model))
    yield from _expert_misfits(planned, model)
    filled = {id(params[name]) for _, name in planned.params if name in params}
    others = [name for name, p in params.items() if id(p) not in filled and name.startswith(planned.within)]
    yield from (f"{name} is not in the plan" for name in others if not may_stay(name))
    if others and any(w.reason in {reason for _, reason in KV_CACHE_SCALES} for w in planned.plan.waivers):
        yield "scales of a quantised KV cache are stored"


def _memory(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters and buffers: a few stored tensors are buffers in vLLM (Gemma-4's ``layer_scalar``)."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {**buffers, **dict(model.named_parameters(remove_duplicate=False))}


def _spec_misfits(planned: Iterable[tuple[ParamSpec, str]], params: Mapping[str, torch.Tensor]) -> Iterator[str]:
    devices = {params[name].device for _, name in planned if name in params}
    if len(devices) > 1:
        yield f"parameters are on several devices: {', '.join(sorted(map(str, devices)))}"
    elif devices and not _writes_to(next(iter(devices))):
        yield f"parameters are on {next(iter(devices))}"
    owners: dict[int, str] = {}
    for spec, name in planned:
        param = params.get(name)
        if param is None:
            yield f"{name} is not a parameter of the model"
        elif why := misfit(spec, param.detach()):
            yield f"{name} {why}"
        elif param.is_inference():
            yield f"{name} was made in inference mode, so other threads cannot write to it"
        elif spec.alias is not None:
            if param is not params.get(spec.alias):
                yield f"{name} is {spec.alias} in the plan, but not in the model"
        elif param.numel() and (owner := owners.setdefault(param.data_ptr(), name)) != name:
            yield f"{name} is {owner} in the model, but not in the plan"


def _writes_to(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and torch.version.cuda is not None)


def _expert_misfits(planned: Planned, model: torch.nn.Module) -> Iterator[str]:
    """Yield modules that hold other experts, or other slices of them, than planned; shapes do not show this."""
    layout, stage_slot = planned.plan.layout, planned.stage_slot
    for name, module in model.named_modules():
        moe = getattr(module, "moe_config", None)
        if moe is None or getattr(module, "expert_map_manager", None) is None:
            continue
        slots = layout.expert_slots(moe.num_logical_experts)
        share = (stage_slot, layout.stage_size)
        if layout.enable_expert_parallel:
            slots, share = slots[slice(*layout.held_slots(len(slots), stage_slot))], (0, 1)
        if (held := held_experts(module)) != slots:
            yield f"{name} holds the experts {_few(held)} in the model and {_few(slots)} in the plan"
        parallel = moe.moe_parallel_config
        if (parallel.tp_rank, parallel.tp_size) != share:
            held_share = f"share {parallel.tp_rank} of {parallel.tp_size}"
            yield f"{name} is {held_share} in the model and {share[0]} of {share[1]} in the plan"


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")
