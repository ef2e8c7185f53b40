"""From a command line to a proof: the common start of `inspect`, `plan`, `load`, `generate` and `serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from loadmaster.cli.options import AUTO, DTYPES
from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.architectures.targets import Engine
    from loadmaster.checkpoint import Checkpoint
    from loadmaster.checkpoint.partial import Span
    from loadmaster.engine.weights import RunPlan
    from loadmaster.parallel import ParallelLayout
    from loadmaster.plan import Plan, Proof, ProvenPlan

T = TypeVar("T")


def add_download_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--download``, for `verify`, which reads every byte and runs nothing."""
    parser.add_argument(
        "--download",
        action="store_true",
        help="download what the cache lacks of a hub model (default: report the size and stop)",
    )


def target_of(engine: Engine) -> str:
    """Return the target to plan for an engine: of vLLM that of the version installed here, if it is described, or the newest."""
    from loadmaster.architectures.targets import newest_target

    if engine == "vllm":
        from loadmaster.integrations.vllm.installed import find_vllm

        if (installed := find_vllm()) is not None and installed.target is not None:
            return installed.target
    return newest_target(engine)


def open_model(args: argparse.Namespace) -> Checkpoint:
    """Open MODEL; where it is not on disk, from its headers alone, without downloading it.

    Raises:
        CheckpointError: there is no such model, or it cannot be reached.
    """
    from loadmaster import checkpoint
    from loadmaster.cli.header_progress import HeaderProgress

    with HeaderProgress() as progress:
        return checkpoint.open_model(args.model, args.revision, on_notice=notice(args), on_progress=progress)


def open_downloaded(args: argparse.Namespace, *, download: bool) -> Checkpoint:
    """Open all files of MODEL on disk; what the hub's cache lacks is downloaded with ``download``.

    Raises:
        CheckpointError: there is no such model, or it is on the hub but not downloaded.
    """
    from loadmaster.checkpoint import open_checkpoint, resolve_model

    found = resolve_model(
        args.model, args.revision, cache_dir=args.download_dir, download=download, on_notice=notice(args)
    )
    return open_checkpoint(found)


def notice(args: argparse.Namespace) -> Callable[[str], None]:
    """Return what prints a line about the command on standard error."""

    def say(line: str) -> None:
        print(f"loadmaster {args.command}: {line}", file=sys.stderr, flush=True)

    return say


def prove_arguments(args: argparse.Namespace, *, target: str = "native") -> Proof:
    """Open the model, plan the parameters of ``target`` and prove the plan; from headers alone.

    Raises:
        InputError: nothing could be planned.
    """
    return _prove(args, open_model(args), DTYPES.get(args.dtype), target)


def prove_checkpoint(args: argparse.Namespace, checkpoint: Checkpoint) -> Proof:
    """Plan an open checkpoint for the native engine and prove the plan; see `prove_arguments`."""
    return _prove(args, checkpoint, DTYPES.get(args.dtype), "native")


def plan_arguments(args: argparse.Namespace, *, target: str = "native") -> Plan:
    """Open the model, and plan the parameters of ``target`` without proving the plan.

    Raises:
        InputError: nothing could be planned.
    """
    return plan_checkpoint(args, open_model(args), target=target)


def plan_checkpoint(args: argparse.Namespace, checkpoint: Checkpoint, *, target: str = "native") -> Plan:
    """Plan a checkpoint that is open, without proving the plan.

    Raises:
        InputError: nothing could be planned.
    """
    return _plan(args, checkpoint, DTYPES.get(args.dtype), target)


def prove_to_load(args: argparse.Namespace, ranks: Callable[[Proof], Sequence[int]]) -> tuple[Proof, Sequence[int]]:
    """Return the proof of a plan, and the ranks that are loaded, whose bytes are on disk: downloaded, once the plan was proven.

    ``ranks`` chooses the ranks. It may refuse, before anything is downloaded.

    Raises:
        PlanError: the proof failed; it carries the proof and its findings.
        InputError: nothing could be planned.
        LoadError: what the ranks read could not be downloaded.
    """

    def plan(checkpoint: Checkpoint) -> tuple[Proof, Sequence[int]]:
        proof = _prove(args, checkpoint, DTYPES.get(args.dtype), "native")
        proof.require_proven()
        return proof, ranks(proof)

    return _then_fetched(args, plan, lambda planned: (planned[0].plan, planned[1]))


def proven_plan(args: argparse.Namespace) -> ProvenPlan:
    """Return the proven plan of a model that another program loads, with all of the model on disk.

    Raises:
        PlanError, InputError, LoadError: as `prove_to_load` raises them.
    """

    def plan(checkpoint: Checkpoint) -> ProvenPlan:
        return _prove(args, checkpoint, DTYPES.get(args.dtype), "native").require_proven()

    return _then_fetched(args, plan, lambda planned: (planned, None))


def run_plan(args: argparse.Namespace, ranks: Callable[[ProvenPlan], Sequence[int] | None]) -> RunPlan:
    """Return the proven plan that a command line runs natively, with weights in the form of ``--weights``.

    The bytes of ``ranks`` are on disk: those that this host computes, or None for all of the model. It is called if they have to
    be downloaded first, and may refuse.

    Raises:
        PlanError, InputError, LoadError: as `prove_to_load` raises them.
    """
    from loadmaster.engine.weights import plan_to_run

    def plan(checkpoint: Checkpoint) -> RunPlan:
        def build(dtype: str | None, target: str) -> ProvenPlan:
            return _prove(args, checkpoint, dtype, target).require_proven()

        return plan_to_run(build, device=args.device or "cpu", dtype=DTYPES.get(args.dtype), weights=args.weights)

    return _then_fetched(args, plan, lambda run: (run.plan, ranks(run.plan)))


def _then_fetched(
    args: argparse.Namespace,
    plan: Callable[[Checkpoint], T],
    here: Callable[[T], tuple[Plan, Sequence[int] | None]],
) -> T:
    """Plan from headers; where the files are not on disk, download what ``here`` says and plan again from them.

    ``here`` returns the plan and the ranks whose bytes are needed, None for all of the model. A model that cannot be used is so
    refused before it is downloaded. A hub model of which all ranks are here is downloaded to the hub's cache, as a whole.
    """
    from loadmaster.checkpoint import fetch_model
    from loadmaster.cli.header_progress import HeaderProgress
    from loadmaster.cli.progress import DownloadProgress
    from loadmaster.plan import shard_ranges

    def wanted(checkpoint: Checkpoint) -> dict[str, tuple[Span, ...]] | None:
        planned, ranks = here(plan(checkpoint))
        if ranks is None or (checkpoint.origin.kind == "hub" and len(set(ranks)) == planned.num_ranks):
            return None
        return shard_ranges(planned, ranks)

    with HeaderProgress() as headers, DownloadProgress("downloading", notice(args)) as progress:
        checkpoint = fetch_model(
            args.model,
            args.revision,
            wanted=wanted,
            download_dir=args.download_dir,
            on_notice=notice(args),
            on_header=headers,
            on_progress=progress,
        )
    return plan(checkpoint)


def _prove(args: argparse.Namespace, checkpoint: Checkpoint, dtype: str | None, target: str) -> Proof:
    from loadmaster.plan import prove

    plan = _plan(args, checkpoint, dtype, target)
    return prove(plan, capacity_bytes=getattr(args, "device_memory", None))


def _plan(args: argparse.Namespace, checkpoint: Checkpoint, dtype: str | None, target: str) -> Plan:
    from loadmaster.plan import build_plan

    layout, waive = _layout(args, checkpoint), getattr(args, "waive", ())
    plan = build_plan(checkpoint, layout, dtype=dtype, target=target, waive=waive)
    if args.layer_partition != AUTO or layout.pipeline_parallel_size == 1:
        return plan
    from loadmaster.architectures.targets import engine_of
    from loadmaster.sizing import MemoryOptions, auto_partition

    device = getattr(args, "device_memory", None)
    names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
    length, seqs, batched = (getattr(args, name, None) for name in names)
    options = MemoryOptions(() if device is None else (device,), length, seqs, batched)
    args.layer_partition = auto_partition(plan, engine_of(target), options)
    return build_plan(checkpoint, _layout(args, checkpoint), dtype=dtype, target=target, waive=waive)


def _layout(args: argparse.Namespace, checkpoint: Checkpoint) -> ParallelLayout:
    from loadmaster.parallel import ParallelLayout

    return ParallelLayout(
        pipeline_parallel_size=args.pipeline_parallel_size,
        tensor_parallel_size=args.tensor_parallel_size,
        enable_expert_parallel=args.enable_expert_parallel,
        layer_partition=None if args.layer_partition == AUTO else args.layer_partition,
        num_draft_layers=num_draft_layers(args.speculative_config, checkpoint),
        data_parallel_size=args.data_parallel_size,
        expert_placement=args.expert_placement_strategy,
        num_redundant_experts=_redundant(args.eplb_config),
        tables=_tables(args.engram_config),
        tables_across_dp=_flag(args.engram_config, "embedding_across_dp") or False,
        multimodal=args.multimodal,
    )


def num_draft_layers(speculative_config: dict[str, Any] | None, checkpoint: Checkpoint) -> int:
    """Return how many MTP layers the value of ``--speculative-config`` asks for: all that the model has, or fewer.

    It is at least 1, so that planning refuses a model that has none.
    """
    if speculative_config is None:
        return 0
    from loadmaster.architectures.registry import find_family
    from loadmaster.engine.support import speculative_tokens
    from loadmaster.errors import InputError

    wanted, drafts = speculative_tokens(speculative_config), 1
    if checkpoint.config is not None:
        with suppress(InputError):  # planning raises it too, with what was found in the files
            family = find_family(checkpoint.config)
            drafts = max(1, family.schema(family.describe(checkpoint.config)).num_drafts)
    return drafts if wanted is None else min(drafts, wanted)


def _tables(engram_config: dict[str, Any]) -> Literal["host", "device"] | None:
    on_host = _flag(engram_config, "cpu_offload")
    return None if on_host is None else "host" if on_host else "device"


def _flag(engram_config: dict[str, Any], key: str) -> bool | None:
    value = engram_config.get(key)
    if not isinstance(value, bool | None):
        raise UsageError(f"--engram-config: {key} is {value!r}, expected true or false")
    return value


def _redundant(eplb_config: dict[str, Any]) -> int:
    value = eplb_config.get("num_redundant_experts", 0)
    if type(value) is not int:
        raise UsageError(f"--eplb-config: num_redundant_experts is {value!r}, expected an integer")
    return value
