"""The options of `plan` about memory, cuts and load time, and what they add to its answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from loadmaster.cli.options import memory as rate_bytes
from loadmaster.cli.options import number, positive, tokens
from loadmaster.cli.planning import notice
from loadmaster.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from loadmaster.plan import Proof
    from loadmaster.sizing import Memory, MemoryOptions
    from loadmaster.sizing.cuts import Boundary
    from loadmaster.sizing.load_time import LoadTime

MEMORY = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_dtype")
"""Options that ask for the memory of the ranks, as ``--device-memory`` does."""

OF_VLLM = ("gpu_memory_utilization", "kv_cache_dtype")
"""Those that have no effect on the native engine."""


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides the memory of a rank beside its parameters, with vLLM's names."""
    memory = parser.add_argument_group("memory")
    memory.add_argument(
        "--max-model-len",
        type=tokens,
        metavar="N",
        help="most tokens of a request (default: the model's max_position_embeddings)",
    )
    memory.add_argument(
        "--max-num-seqs",
        type=positive,
        metavar="N",
        help="most requests at a time (default: the engine's; given, it is reported if they do not fit)",
    )
    memory.add_argument(
        "--max-num-batched-tokens", type=tokens, metavar="N", help="most tokens of a batch (default: the engine's)"
    )
    memory.add_argument(
        "--gpu-memory-utilization",
        type=_share,
        metavar="SHARE",
        help="with --engine vllm: the share of each device that vLLM uses (default: 0.92)",
    )
    memory.add_argument(
        "--kv-cache-dtype",
        metavar="DTYPE",
        help="with --engine vllm: auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2 or fp8_ds_mla (default: auto, the model's)",
    )


def add_cut_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what lists the cuts, and what predicts the time of a load."""
    parser.add_argument("--cuts", action="store_true", help="also list what would cross each boundary of layers")
    loading = parser.add_argument_group("load time")
    loading.add_argument(
        "--storage",
        type=_rate,
        metavar="RATE",
        help="predict the load time: bytes a second that a host reads, such as 2GB/s",
    )
    loading.add_argument("--link", type=_rate, metavar="RATE", help="bytes a second to each device, such as 55GB/s")
    loading.add_argument(
        "--hosts", type=positive, metavar="N", help="hosts that share the ranks evenly, in order (default: 1)"
    )


def _rate(text: str) -> float:
    """Return bytes a second.

    >>> _rate("2GB/s")
    2000000000.0
    """
    size, slash, second = text.partition("/")
    if not slash or second != "s":
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 2GB/s")
    return float(rate_bytes(size))


def _share(text: str) -> float:
    share = number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the device's memory, such as 0.92")
    return share


def memory_options(args: argparse.Namespace, device_bytes: tuple[int, ...]) -> MemoryOptions:
    """Return the options of a command line; those that the engine does not have are named on standard error."""
    from loadmaster.sizing import MemoryOptions

    given = {name: value for name in MEMORY if (value := getattr(args, name)) is not None}
    if args.engine == "native" and (ignored := [name for name in OF_VLLM if given.pop(name, None) is not None]):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        notice(args)(f"ignored: {names} (of vLLM: --engine vllm)")
    return MemoryOptions(device_bytes, **given)


class Sizes:
    """What the options of `plan` add to a proof: the memory of the ranks, cuts, and the load time."""

    def __init__(self, args: argparse.Namespace, proof: Proof) -> None:
        self.proof = proof
        self.memory: Memory | None = None
        self.cuts: tuple[Boundary, ...] | None = None
        self.time: LoadTime | None = None
        if args.storage is None and (args.link is not None or args.hosts is not None):
            raise UsageError("--link and --hosts are of a load time", hint="add --storage, such as 2GB/s")
        asked = any(getattr(args, name) is not None for name in MEMORY)
        if args.device_memory is not None or asked:
            self._measure(args, may_lack_length=not asked)
        if args.cuts:
            from loadmaster.sizing.cuts import list_boundaries

            self.cuts = list_boundaries(proof.plan)
        if args.storage is not None:
            from loadmaster.sizing.load_time import Rates, load_time

            self.time = load_time(proof.plan.layout, proof.ranks, Rates(args.storage, args.link, args.hosts or 1))

    def _measure(self, args: argparse.Namespace, *, may_lack_length: bool) -> None:
        """Count the memory. With ``may_lack_length`` a model whose longest request nothing names is judged by its parameters."""
        from loadmaster.sizing import measure_proof, with_memory

        devices = () if args.device_memory is None else (args.device_memory,)
        try:
            self.memory = measure_proof(self.proof, args.engine, memory_options(args, devices))
        except ConfigError as error:
            if not may_lack_length:
                raise
            notice(args)(f"only parameters are compared with --device-memory: {error.message} ({error.hint})")
            return
        self.proof = with_memory(self.proof, self.memory)

    def objects(self) -> dict[str, Any]:
        """Return what is added to the JSON object."""
        added: dict[str, Any] = {}
        if self.memory is not None:
            from loadmaster.report.memory import memory_object

            added["memory"] = memory_object(self.memory)
        if self.cuts is not None:
            from loadmaster.report.cuts import cut_objects

            added["cuts"] = cut_objects(self.cuts)
        if self.time is not None:
            from loadmaster.report.load_time import load_time_object

            added["load_time"] = load_time_object(self.time)
        return added

    def print(self, console: Console) -> None:
        """Print what is added to the text."""
        if self.memory is not None:
            from loadmaster.report.memory import print_memory

            print_memory(console, self.memory)
        if self.cuts is not None:
            from loadmaster.report.cuts import print_cuts

            print_cuts(console, self.cuts)
        if self.time is not None:
            from loadmaster.report.load_time import print_load_time

            print_load_time(console, self.time)
