"""``loadmaster pull MODEL``: download what some ranks read, into a folder that plans and loads like the whole for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loadmaster.cli.options import add_model_arguments, require_rank, whole
from loadmaster.cli.planning import notice, prove_checkpoint
from loadmaster.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from loadmaster.checkpoint import Checkpoint
    from loadmaster.checkpoint.partial import Span
    from loadmaster.checkpoint.remote.folder import RemoteFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_arguments(parser)
    parser.add_argument("--local-dir", type=Path, required=True, metavar="DIR", help="the folder to download to")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--stage", type=_stage, metavar="K/N", help="only what stage K of N pipeline stages reads; the first is 0"
    )
    which.add_argument(
        "--rank",
        type=whole,
        action="append",
        metavar="R",
        help="only what this rank reads; repeatable (default: everything)",
    )


def _stage(text: str) -> tuple[int, int]:
    stage, slash, stages = text.partition("/")
    if not slash or not stage.isdecimal() or not stages.isdecimal() or not int(stage) < int(stages):
        raise argparse.ArgumentTypeError(f"{text!r} is not a stage such as 3/8; the first of 8 is 0/8, the last 7/8")
    return int(stage), int(stages)


def run(args: argparse.Namespace) -> int:
    """Prove the plan from headers, download what is missing of its ranks' bytes, and say what is there."""
    from loadmaster.checkpoint.folder import open_source
    from loadmaster.checkpoint.model import find_files
    from loadmaster.checkpoint.remote.cache import HeaderCache, cache_folder
    from loadmaster.checkpoint.remote.folder import RemoteFolder
    from loadmaster.cli.header_progress import HeaderProgress

    _set_stages(args)
    say = notice(args)
    with find_files(args.model, args.revision, on_notice=say) as files:
        if isinstance(files, Path):
            raise CheckpointError(f"{args.model} is on disk already: {files}", hint="give that folder as MODEL")
        if files.only is not None:
            raise CheckpointError(f"{files.origin} is one file, and a checkpoint is pulled", hint="give its folder")
        with HeaderProgress() as progress:
            cache = HeaderCache(cache_folder("headers"))
            source = RemoteFolder(files, cache=cache, progress=progress, say=say, keeps_heads=True)
            checkpoint = open_source(source)
        _pull(args, source, checkpoint)
    return 0


def _set_stages(args: argparse.Namespace) -> None:
    """Let ``--stage K/N`` say the number of stages."""
    if args.stage is None:
        return
    if args.pipeline_parallel_size not in (1, args.stage[1]):
        raise UsageError(f"--stage K/{args.stage[1]} and --pipeline-parallel-size {args.pipeline_parallel_size} differ")
    args.pipeline_parallel_size = args.stage[1]


def _pull(args: argparse.Namespace, source: RemoteFolder, checkpoint: Checkpoint) -> None:
    from loadmaster.checkpoint.remote.pull import pull_into
    from loadmaster.cli.progress import DownloadProgress
    from loadmaster.findings import gib

    wanted = _wanted(args, checkpoint)
    with DownloadProgress("pulling", notice(args)) as progress:
        num_bytes = pull_into(
            args.local_dir, source, checkpoint, wanted, option="--local-dir", say=notice(args), on_progress=progress
        )
    total = sum(f.size for f in checkpoint.files)
    needed = sum(end - start for spans in wanted.values() for start, end in spans)
    if args.json:
        from loadmaster.report.json import dumps

        result = {"pulled_bytes": num_bytes, "needed_bytes": needed, "checkpoint_bytes": total}
        print(dumps({"folder": str(args.local_dir), "origin": checkpoint.origin.as_json(), **result}))
    else:
        print(
            f"{args.local_dir}: pulled {gib(num_bytes)}; it has the {gib(needed)} of {gib(total)} that were asked for"
        )


def _wanted(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, tuple[Span, ...]]:
    """Return the ranges of each shard that the ranks read, the header included; all of it where no rank is given.

    Raises:
        PlanError: the plan is not proven.
        UsageError: there is no such rank.
    """
    from loadmaster.plan import shard_ranges

    plan = prove_checkpoint(args, checkpoint).require_proven()
    if args.stage is None and args.rank is None:
        return {f.name: ((0, f.size),) for f in checkpoint.files}
    for rank in args.rank or ():
        require_rank("--rank", rank, plan.num_ranks)
    return shard_ranges(plan, args.rank or list(plan.layout.stage_ranks(args.stage[0])))
