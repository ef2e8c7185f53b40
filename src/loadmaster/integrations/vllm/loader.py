"""The loader in vLLM's registry: the methods that vLLM calls, in this order.

1. `create_model` reads the checkpoint's headers and refuses their errors. If vLLM's parameters are described, it plans and
   proves this rank (`direct`). Then it builds the model in memory that is filled with a pattern.
2. `load_weights` writes the parameters directly if the model matches the plan. Otherwise it streams the tensors that this
   rank needs to the model's own ``load_weights``. Parameters that still have the pattern are refused by name.

This module imports vLLM; only `register` imports it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import vllm
from vllm.config import ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.utils import get_pp_indices
from vllm.logger import init_logger
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.model_executor.model_loader.weight_utils import maybe_download_from_modelscope

from loadmaster.architectures.targets import target_of_vllm
from loadmaster.checkpoint import Checkpoint, LocalStore, open_checkpoint, resolve_model
from loadmaster.errors import CheckpointError, LoadError, LoadmasterError, UnsupportedError
from loadmaster.findings import errors, gib
from loadmaster.integrations.vllm.box_copies import box_copies
from loadmaster.integrations.vllm.built_model import expert_sizes, may_stay, outline_of, params_with_room
from loadmaster.integrations.vllm.direct import (
    Planned,
    Unfit,
    check_fit,
    layout_of,
    misfits,
    write,
)
from loadmaster.integrations.vllm.needs import Outline, Skip, reason_to_skip
from loadmaster.integrations.vllm.options import read_options
from loadmaster.integrations.vllm.proving import listed, prove_layout, with_room
from loadmaster.integrations.vllm.refusal import refusal
from loadmaster.integrations.vllm.reload import Signatures, check_found, remember, remembered
from loadmaster.integrations.vllm.stream import stream_tensors
from loadmaster.integrations.vllm.unwritten import Watch, patterned, prepare, write_pattern
from loadmaster.loader import make_ring
from loadmaster.loader.cuda.ring import Ring
from loadmaster.loader.readers import default_readers
from loadmaster.parallel import ParallelLayout
from loadmaster.plan import ProvenPlan

logger = init_logger("vllm.loadmaster")


@dataclass(frozen=True)
class Selection:
    """The ids of the tensors of one checkpoint that are offered to the model, and how many others are skipped, by reason.

    ``prefix`` is put before the names.
    """

    checkpoint: Checkpoint
    ids: list[int]
    skipped: Mapping[Skip, int]
    prefix: str = ""

    @property
    def num_bytes(self) -> int:
        """The bytes of the offered tensors; these are read."""
        return int(self.checkpoint.table.nbytes[self.ids].sum())


class Loader(BaseModelLoader):
    """Load format ``loadmaster``: reads the tensors that a rank needs, and proves that every parameter was written."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(load_config)
        self.options = read_options(load_config.model_loader_extra_config)
        self.offered: list[Selection] = []
        self.planned: Planned | None = None
        self._ring: Ring | None = None
        self._checkpoint: Checkpoint | None = None

    def download_model(self, model_config: ModelConfig) -> None:
        """Download a model from the hub, so that it can be loaded from disk."""
        self._folder(model_config.model, model_config.revision)

    def create_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> torch.nn.Module:
        """Plan this rank if possible, and build the model as vLLM does, in memory that has the pattern.

        Raises:
            CheckpointError: files, headers or index have errors.
            PlanError: the checkpoint lacks what the model needs; nothing is allocated.
            UnsupportedError: ``direct`` is true, but the parameters cannot be written directly.
        """
        self.planned = self._plan(vllm_config, model_config, prefix)
        if torch.cuda.is_initialized():
            self._prepare(torch.device("cuda", torch.cuda.current_device()))
        with patterned() if self.options.verify else nullcontext():
            return super().create_model(vllm_config, model_config, prefix)  # type: ignore[no-any-return]

    def _prepare(self, device: torch.device) -> None:
        """Begin what takes a GPU's driver its time, on threads: it is done when the model is built."""
        if self.planned is not None:
            self._ring = make_ring(self.options.num_readers, self.options.staging_bytes, device)
        if self.options.verify:
            Thread(target=prepare, args=(device,), name="prepare").start()

    def _plan(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> Planned | None:
        """Return this rank's plan; None if its parameters must be streamed, and log why."""
        if self.options.direct is False:
            return None
        checkpoint = self._open(model_config)
        self._checkpoint = checkpoint
        try:
            if prefix:
                raise Unfit(f"the model is part of another, as {prefix}")
            check_fit(vllm_config, model_config, checkpoint, get_model_cls(model_config), vllm.__version__)
            is_draft = model_config.runner_type == "draft"
            layout, rank = layout_here(vllm_config, model_config, is_draft=is_draft)
            target = target_of_vllm(vllm.__version__)
            proven = prove_layout(checkpoint, layout, model_config.dtype, self.options.waive, target=target)
            if is_draft and (num_drafts := _num_drafts(proven, model_config)) > 1:  # vLLM builds all of them
                layout = replace(layout, num_draft_layers=num_drafts)
                proven = prove_layout(checkpoint, layout, model_config.dtype, self.options.waive, target=target)
            return Planned(proven, rank, is_draft)
        except Unfit as why:
            self._stream_because(str(why))
            return None

    def _stream_because(self, reason: str) -> None:
        """Log why parameters are streamed.

        Raises:
            UnsupportedError: direct writing or waivers were requested.
        """
        if self.options.waive:
            raise UnsupportedError(
                f"{_rank()}: waivers need parameters that are written directly, by a plan, which is not possible: {reason}",
                hint="remove waive from --model-loader-extra-config, or remove the tensors from the checkpoint",
            )
        if self.options.direct is True:
            raise UnsupportedError(
                f"{_rank()}: the parameters cannot be written directly: {reason}",
                hint='{"direct": "auto"} streams them through vLLM\'s own loader',
            )
        logger.info("%s: streamed through vLLM's own loader: %s", _rank(), reason)

    def _open(self, model_config: ModelConfig) -> Checkpoint:
        """Return the model's checkpoint.

        Raises:
            CheckpointError: its files have errors.
        """
        return _sound(open_checkpoint(self._folder(model_config.model, model_config.revision)))

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        """Write the model's parameters, and prove that all were written.

        Raises:
            CheckpointError: files, headers or index have errors; nothing is read.
            UnsupportedError: weights that are not safetensors, or in a format that torch lacks.
            LoadError: reading failed, or bytes of a parameter were not written.
        """
        stays = may_stay(model, model_config)
        planned, self.planned = self.planned, None  # of the model that was just built
        opened, self._checkpoint = self._checkpoint, None
        if planned is not None:
            try:
                planned = with_room(planned, expert_sizes(model))
            except Unfit as why:
                self._stream_because(str(why))
                planned = None
        if planned is not None and (reason := _reason(misfits(planned, model, stays))):
            self._stream_because(reason)
            planned = None
        self.offered = [] if planned else self._select(model, model_config, opened)
        if planned and (left := set(planned.left(model))):
            first, *more = self._select(model, model_config, opened)
            self.offered = [replace(first, ids=[i for i in first.ids if i in left]), *more]
        room = () if planned else params_with_room(model)
        whole = {name for _, name in planned.params} if planned else ()
        watch = Watch(dict(model.named_parameters()), stays, room, whole) if self.options.verify else None
        ring, self._ring = self._ring, None
        with nullcontext() if ring is None else closing(ring):
            if planned is None:
                self._stream_all(model)
            else:
                self._write_directly(planned, model, ring)
        if watch is None:
            return
        read = [*([Selection(planned.plan.checkpoint, planned.tensors, {})] if planned else []), *self.offered]
        if gaps := watch.gaps():
            writer = "the plan" if planned else f"{type(model).__name__}.load_weights"
            rename = outline_of(model, model_config).rename
            stored = [rename(s.prefix + n) or n for s in read for n in s.checkpoint.table.names]
            raise refusal(_rank(), gaps, stored, model, writer)
        remember(model, _signatures(read))

    def _write_directly(self, planned: Planned, model: Any, ring: Ring | None) -> None:
        report = write(planned, model, self.options, ring)
        logger.info(
            "%s: written directly: %s of %s read in %.2f s; plan %s",
            _rank(),
            gib(report.fetched_bytes),
            gib(planned.plan.checkpoint.table.payload_bytes),
            report.seconds,
            planned.plan.hash[:16],
        )
        if self.offered:
            for name, param in model.named_parameters():
                if name in planned.computed:
                    for part in planned.stored_parts(name, param.data):  # it is proven that vLLM writes them
                        write_pattern(part)
            self._stream_all(model)

    def _stream_all(self, model: Any) -> None:
        begin = time.perf_counter()
        self._write(model)
        logger.info(
            "%s: %s of %s read in %.2f s%s",
            _rank(),
            gib(sum(s.num_bytes for s in self.offered)),
            gib(sum(s.checkpoint.table.payload_bytes for s in self.offered)),
            time.perf_counter() - begin,
            "".join(f"; {n:,} tensors not read: {why.value}" for s in self.offered for why, n in s.skipped.items()),
        )

    def _write(self, model: Any) -> None:
        """Run the model's own loader.

        Raises:
            LoadError: it failed; the message names the last tensor that it received.
        """
        last: str | None = None

        def offer() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal last
            for name, tensor in self._stream(model):
                last = name
                yield name, tensor

        try:
            with box_copies() if _on_gpu(model) else nullcontext():
                model.load_weights(offer())
        except LoadmasterError:
            raise
        except Exception as error:
            raise LoadError(
                f"{_rank()}: {type(model).__name__}.load_weights failed at {last}: {type(error).__name__}: {error}",
                hint="vLLM's own loader cannot load this tensor; the error above is vLLM's",
            ) from error

    def get_all_weights(self, model_config: ModelConfig, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Return the tensors that the model needs; vLLM calls this to reload weights in place.

        The checkpoint is checked now and not at the first tensor, when vLLM has already removed the parameters. It must have
        every tensor of the original load, because vLLM reloads into memory without the pattern.

        Raises:
            CheckpointError: files, headers or index have errors.
            LoadError: a tensor of the original load is missing, or has another shape or format.
        """
        self.offered = self._select(model, model_config)
        if self.options.verify and (proven := remembered(model)) is not None:
            check_found(proven, _signatures(self.offered), _rank())
        return self._stream(model)

    def _select(
        self, model: torch.nn.Module, model_config: ModelConfig, opened: Checkpoint | None = None
    ) -> list[Selection]:
        if getattr(model, "allow_patterns_overrides", None):
            raise UnsupportedError(
                f"{type(model).__name__} chooses its files by its own patterns, which this load format does not support",
                hint="use --load-format auto",
            )
        if model_config.quantization == "torchao":
            raise UnsupportedError(
                "torchao's checkpoints describe their tensors in metadata, which this load format does not read",
                hint="use --load-format auto",
            )
        outline = outline_of(model, model_config)
        selections = [_selection(opened or self._open(model_config), outline)]
        for source in getattr(model, "secondary_weights", ()):
            folder = self._folder(source.model_or_path, source.revision) / (source.subfolder or "")
            selections.append(_selection(_sound(open_checkpoint(folder)), outline, source.prefix))
        return selections

    def _stream(self, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Return the offered tensors, read while they are used; nothing is read before the first is asked for."""
        return self._streamed(page_locked=_on_gpu(model))

    def _streamed(self, *, page_locked: bool) -> Iterator[tuple[str, torch.Tensor]]:
        for selection in self.offered:
            with LocalStore(selection.checkpoint.path, readahead=False) as store:
                tensors = stream_tensors(
                    selection.checkpoint,
                    selection.ids,
                    store,
                    staging_bytes=self.options.staging_bytes,
                    num_readers=self.options.num_readers or default_readers(),
                    page_locked=page_locked,
                )
                for name, tensor in tensors:
                    yield selection.prefix + name, tensor

    def _folder(self, model: str, revision: str | None) -> Path:
        name = maybe_download_from_modelscope(model, revision) or model
        cache = self.load_config.download_dir
        return resolve_model(name, revision, cache_dir=cache, download=True, on_notice=logger.info)


def _on_gpu(model: torch.nn.Module) -> bool:
    return any(p.is_cuda for p in model.parameters())


def _sound(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose files have no errors. Errors of the config are left to vLLM, which has read it already.

    Raises:
        CheckpointError: the files have errors.
    """
    if wrong := tuple(f for f in errors(checkpoint.findings) if not f.code.startswith("config-")):
        raise CheckpointError(
            listed(f"{checkpoint.path}: the checkpoint has errors; nothing was read", wrong),
            findings=wrong,
            code=wrong[0].code,
        )
    return checkpoint


def _selection(checkpoint: Checkpoint, outline: Outline, prefix: str = "") -> Selection:
    """Choose the tensors to offer."""
    ids: list[int] = []
    skipped: Counter[Skip] = Counter()
    for i, name in enumerate(checkpoint.table.names):
        reason = reason_to_skip(prefix + name, outline)
        if reason is None:
            ids.append(i)
        else:
            skipped[reason] += 1
    return Selection(checkpoint, ids, skipped, prefix)


def _num_drafts(plan: ProvenPlan, model_config: ModelConfig) -> int:
    """Return how many drafts vLLM builds of those that a plan's model has."""
    supported = getattr(model_config.hf_text_config, "n_predict", None)
    return min(plan.schema.num_drafts, supported or plan.schema.num_drafts)


def layout_here(
    vllm_config: VllmConfig, model_config: ModelConfig, *, is_draft: bool = False
) -> tuple[ParallelLayout, int]:
    """Return vLLM's layout, layers divided as vLLM divides them, and the number of this process's rank in it.

    Raises:
        Unfit: plans do not support the layout.
    """
    pp, tp = _groups()
    config = vllm_config.speculative_config.target_model_config if is_draft else model_config  # a draft's may have none
    depth = int(config.get_total_num_hidden_layers())
    spans = [get_pp_indices(depth, stage, pp[1]) for stage in range(pp[1])]
    return layout_of(vllm_config, [end - first for first, end in spans], pp, tp, is_draft=is_draft)


def _groups() -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rank and size in the pipeline, and among tensor-parallel ranks."""
    pp = get_pp_group()
    return (pp.rank_in_group, pp.world_size), (get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size())


def _signatures(offered: list[Selection]) -> Signatures:
    return {
        s.prefix + s.checkpoint.table.names[i]: s.checkpoint.table.signatures[s.checkpoint.table.signature[i]]
        for s in offered
        for i in s.ids
    }


def _rank() -> str:
    pp, tp = _groups()
    return f"rank pp {pp[0]} of {pp[1]}, tp {tp[0]} of {tp[1]}"


def _reason(misfits: Iterator[str]) -> str:
    """Return the misfits in one line; empty if there are none."""
    every = list(misfits)
    more = f"; and {len(every) - 3:,} more" if len(every) > 3 else ""
    return "; ".join(every[:3]) + more
