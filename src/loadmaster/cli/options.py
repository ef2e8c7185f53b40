"""Options that commands share, with vLLM's names."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from loadmaster.errors import UsageError

if TYPE_CHECKING:
    from loadmaster.engine import Capacity
    from loadmaster.plan import WaiverRequest


class Engines:
    """The choices of ``--engine``: ``more``, then every engine. The registry is imported when they are first needed."""

    def __init__(self, *more: str) -> None:
        self._more = more

    def __iter__(self) -> Iterator[str]:
        from loadmaster.architectures.targets import ENGINES

        return iter((*self._more, *ENGINES))

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)


ANYWHERE = "a folder, a Hugging Face hub id, or an https://, s3:// or gs:// URL"
"""What MODEL can be."""

AUTO = "auto"
"""The value of ``--layer-partition`` for which `loadmaster.sizing` divides the layers."""

DTYPES = {"bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32"}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, the layout and the other options that decide a plan."""
    add_source_arguments(parser, ANYWHERE)
    add_layout_arguments(parser)
    add_dtype_argument(parser)
    add_waive_argument(parser)
    add_json_argument(parser)


def add_source_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add MODEL, which can be ``what``, and its revision."""
    parser.add_argument("model", metavar="MODEL", help=what)
    parser.add_argument("--revision", help="the hub revision: branch, tag or commit")


def add_download_dir_argument(parser: argparse.ArgumentParser) -> None:
    """Add where a model is downloaded to."""
    parser.add_argument(
        "--download-dir",
        metavar="DIR",
        help="where a model that is not on disk is downloaded to (default: the hub's cache; for URLs, and for parts of hub "
        "models, ~/.cache/loadmaster/models)",
    )


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add the dtype of unquantised weights."""
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="cast unquantised weights to this (default: as stored), and compute in it",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a layout."""
    layout = parser.add_argument_group("layout")
    layout.add_argument(
        "--pipeline-parallel-size", "-pp", type=positive, default=1, metavar="N", help="number of pipeline stages"
    )
    layout.add_argument(
        "--tensor-parallel-size", "-tp", type=positive, default=1, metavar="N", help="ranks in each stage"
    )
    layout.add_argument(
        "--data-parallel-size",
        "-dp",
        type=positive,
        default=1,
        metavar="N",
        help="number of copies of the model; its experts are divided over the tensor × data ranks",
    )
    layout.add_argument(
        "--enable-expert-parallel",
        "-ep",
        action="store_true",
        help="give whole experts to the tensor × data ranks of a stage, instead of a slice of each",
    )
    layout.add_argument(
        "--no-enable-expert-parallel", dest="enable_expert_parallel", action="store_false", help=argparse.SUPPRESS
    )
    layout.add_argument(
        "--expert-placement-strategy",
        choices=["linear", "round_robin"],
        default="linear",
        help="assign experts to ranks in consecutive runs (default) or in turn",
    )
    layout.add_argument(
        "--eplb-config",
        type=json_object,
        default={},
        metavar="JSON",
        help="""'{"num_redundant_experts": N}' adds copies of the first N experts; other keys do not change the layout""",
    )
    layout.add_argument(
        "--engram-config",
        type=json_object,
        default={},
        metavar="JSON",
        help="""'{"cpu_offload": true}' puts tables of which each token reads a few rows into the memory of the host, false onto
        devices (default: n-gram tables on the host, others on devices); '{"embedding_across_dp": true}' divides their rows over
        the tensor × data ranks; other keys do not change the layout""",
    )
    layout.add_argument(
        "--multimodal",
        action="store_true",
        help="hold vision and audio towers and projectors on the first stage, as they are stored (default: left unread)",
    )
    layout.add_argument(
        "--layer-partition",
        type=_counts,
        metavar="N,N,…|auto",
        help="number of layers of each stage, or auto: so that no stage has much more than its share of memory and computation "
        "(default: divided as vLLM does)",
    )
    add_speculative_argument(layout)


def add_speculative_argument(group: argparse._ActionsContainer) -> None:
    """Add the MTP layers that draft."""
    group.add_argument(
        "--speculative-config",
        "-sc",
        type=json_object,
        metavar="JSON",
        help="""'{"method": "mtp"}' loads the MTP layer on the last stage to draft with;
        "num_speculative_tokens" says how many tokens (default: one a layer)""",
    )


def add_waive_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``waive``: surplus tensors of a checkpoint that the user accepts, as a list of `WaiverRequest`."""
    parser.add_argument(
        "--waive",
        type=_waiver,
        action="append",
        default=[],
        metavar="PATTERN=REASON",
        help="accept stored tensors that no parameter needs, by a glob on their names, and report REASON; repeatable",
    )


def add_engine_argument(parser: argparse.ArgumentParser) -> None:
    """Add the engine whose parameters are planned."""
    engine = parser.add_argument(
        "--engine",
        default="native",
        help="plan the parameters of this engine's model: the native engine (default), or vLLM: the installed 0.32 or 0.33, or "
        "0.33 if there is none",
    )
    engine.choices = Engines()


def add_capacity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the memory of a device, which the plan must fit."""
    parser.add_argument(
        "--device-memory",
        type=device_memory,
        metavar="SIZE",
        help="memory of each device as nvidia-smi shows it, such as 80GiB; the parameters of a rank must fit, and for `plan` all "
        "that its engine needs",
    )


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Add the form in which weights are computed with."""
    parser.add_argument(
        "--weights",
        choices=["auto", "stored", "decoded"],
        default="auto",
        help="keep quantised weights as stored and dequantise them at each use, or decode them once while loading; auto "
        "(default): decoded on a CPU if they fit its memory, otherwise stored",
    )


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how much the engine computes at a time, and the size of its KV cache. None means that it was not given."""
    engine = parser.add_argument_group("batches and KV cache")
    engine.add_argument(
        "--max-num-seqs", type=positive, metavar="N", help="most requests that are computed at a time (default: 256)"
    )
    engine.add_argument(
        "--max-num-batched-tokens",
        type=tokens,
        metavar="N",
        help="most tokens of a batch (default: 512 on a CPU, 8192 on GPUs)",
    )
    engine.add_argument(
        "--kv-cache-memory-bytes",
        type=cache_memory,
        metavar="SIZE",
        help="size of the KV cache of each rank, such as 4GiB, or in bytes (default: 4 GiB for all ranks on a CPU, 85 %% of "
        "the free memory on a GPU)",
    )
    engine.add_argument(
        "--block-size", type=positive, metavar="N", help="tokens of a page of the KV cache (default: 16)"
    )
    engine.add_argument(
        "--num-gpu-blocks-override",
        type=positive,
        metavar="N",
        help="number of pages in the KV cache, on a CPU too, whatever memory is free",
    )
    engine.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compute the common beginning of prompts once (default: yes)",
    )


def capacity(args: argparse.Namespace) -> Capacity:
    """Return what `add_engine_arguments` read, with the engine's defaults for what was not given."""
    from loadmaster.engine import Capacity

    given = {f.name: getattr(args, f.name) for f in fields(Capacity)}
    return Capacity(**{name: value for name, value in given.items() if value is not None})


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the device that stages run on."""
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="run ranks on the CPU (default), or on the GPUs in turn",
    )


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def require_rank(option: str, rank: int, num_ranks: int) -> None:
    """Check that a layout has the rank that an option gives.

    Raises:
        UsageError: it has not.
    """
    if not 0 <= rank < num_ranks:
        raise UsageError(f"{option} {rank}: the layout has ranks 0 to {num_ranks - 1}")


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def number(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def tokens(text: str) -> int:
    """Return a number of tokens, which may end in k, m or g for thousands, and in K, M or G for powers of 1024, as in vLLM.

    >>> tokens("4096"), tokens("32k"), tokens("32K"), tokens("1.5k")
    (4096, 32000, 32768, 1500)
    """
    if text in ("auto", "-1"):
        raise argparse.ArgumentTypeError(f"{text} is not supported: leave it out for the model's own length")
    match = re.fullmatch(r"(\d+|\d+\.\d+(?=[kmg]))([kmgKMG]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens such as 4096 or 32k")
    power = " kmg".index(match[2].lower() or " ")
    return positive(str(int(float(match[1]) * (1000 if match[2].islower() else 1024) ** power)))


def _counts(text: str) -> tuple[int, ...] | str:
    if text == AUTO:
        return AUTO
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, nor a list of numbers such as 10,10,12")
    return tuple(int(n) for n in text.split(","))


def _waiver(text: str) -> WaiverRequest:
    from loadmaster.plan import WaiverRequest

    try:
        return WaiverRequest.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}: it is {error.hint}") from error


def json_object(text: str) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def device_memory(text: str) -> int:
    """Return the bytes of a device's memory, at least 1 MiB.

    >>> device_memory("80GiB")
    85899345920
    """
    return _size(text, "GiB")


def cache_memory(text: str) -> int:
    """Return the bytes of a KV cache. A plain number is bytes, as in vLLM.

    >>> cache_memory("4GiB"), cache_memory("4096")
    (4294967296, 4096)
    """
    return positive(text) if text.isdecimal() else _size(text, "GiB")


def memory(text: str) -> int:
    """Return bytes. A plain number is bytes.

    >>> memory("16MiB"), memory("4096")
    (16777216, 4096)
    """
    return positive(text) if text.isdecimal() else _size(text, "MiB")


def staging(text: str) -> int:
    """Return the bytes of the staging budget."""
    return _size(text, "MiB")


_LEAST_BYTES = 2**20


def _size(text: str, usual: str) -> int:
    """Return bytes. A size without a unit is an error that suggests the ``usual`` one."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", text)
    if not match:
        loose = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?", text.lower())
        asked = (
            f"{loose[1]}{loose[2].upper()}{loose[3] or 'i'}B?"
            if loose
            else f"write a number and a unit, such as 8{usual}"
        )
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: {asked}")
    if not match[2]:
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: {match[1]}{usual}?")
    num_bytes = int(float(match[1]) * (1024 if "i" in match[2] else 1000) ** "BKMGT".index(match[2][0]))
    if num_bytes < _LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1MiB: {match[1]}{usual}?")
    return num_bytes
