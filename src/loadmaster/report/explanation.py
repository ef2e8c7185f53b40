"""Shows what `loadmaster.plan.explanation` finds out about one name, as text and as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadmaster.architectures.notation import box, experts
from loadmaster.findings import gib, ranges
from loadmaster.plan.binding import NOT_ENABLED
from loadmaster.plan.explanation import (
    ExplainedParam,
    ExplainedTensor,
    Explanation,
    ParamShare,
    PieceReads,
    TensorRange,
    TensorUse,
)
from loadmaster.report.console import print_wide, say
from loadmaster.report.json import finding_objects
from loadmaster.report.text import print_findings

MOST_READS = 4
"""Up to this many ranges of a piece are printed; of more, the first and the last. JSON has all."""
MOST_SHARES = 4
"""Up to this many groups of ranks are printed; of more, the first ones and the last."""
MOST_USES = 12
"""Up to this many uses of a tensor are printed."""

_DONE = {"copy": "copied", "permute": "reordered", "decode": "decoded", "cast": "cast", "fill": "filled"}


def print_explanation(console: Console, explanation: Explanation) -> None:
    """Print a parameter: its expression, then for each group of ranks what fills it; a tensor: who reads what of it."""
    if explanation.param is not None:
        _print_param(console, explanation.param)
    if explanation.tensor is not None:
        _print_tensor(console, explanation.tensor)


def explanation_object(explanation: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON values; ranges are bytes, ``start`` is from the beginning of the file."""
    param, tensor = explanation.param, explanation.tensor
    return {
        "name": explanation.name,
        "param": None if param is None else _param_object(param),
        "tensor": None if tensor is None else _tensor_object(tensor),
    }


# A parameter ----------------------------------------------------------------------------------------------------------


def _print_param(console: Console, param: ExplainedParam) -> None:
    where = "the model itself" if param.layer is None else f"layer {param.layer}"
    stages = f"stage{'s' if len(param.stages) > 1 else ''} {ranges(param.stages)}"
    say(console, f"{param.name}  parameter of {param.target}, {where}, {stages}, rank {ranges(param.ranks)}")
    say(console, f"  = {param.expression}")
    if param.format is not None:
        others = ", ".join(name for name in param.components if name != param.name)
        say(console, f"  one component of {param.format}, kept as stored; the others: {others}")
    left_out = param.shares[MOST_SHARES - 1 : -1] if len(param.shares) > MOST_SHARES else ()
    for share in param.shares:
        if share not in left_out:
            _print_share(console, share)
        elif share is left_out[0]:
            others = ranges(rank for share in left_out for rank in share.ranks)
            say(console, f"rank {others}: other parts of it, cut alike; --json has all")


def _print_share(console: Console, share: ParamShare) -> None:
    say(console, f"rank {ranges(share.ranks)}: {share.dtype} {list(share.shape)}, {_size(share.num_bytes)}")
    if share.alias is not None:
        say(console, f"  shares the memory of {share.alias}: nothing is read for it")
    for piece in share.pieces:
        _print_piece(console, share, piece)


def _print_piece(console: Console, share: ParamShare, piece: PieceReads) -> None:
    which = f", experts {experts(piece.experts)}" if piece.experts else ""
    why = f" ({piece.reason})" if piece.reason else ""
    say(console, f"  {box(piece.box, share.shape)}{which}: {_DONE[piece.operation]} from {piece.expression}{why}")
    for line in _some([_range_line(r) for r in piece.reads], MOST_READS):
        say(console, f"      {line}")


def _param_object(param: ExplainedParam) -> dict[str, Any]:
    return {
        "name": param.name,
        "target": param.target,
        "expression": param.expression,
        "stages": param.stages,
        "layer": param.layer,
        "format": param.format,
        "components": param.components,
        "shares": [
            {
                "ranks": share.ranks,
                "dtype": share.dtype,
                "shape": share.shape,
                "bytes": share.num_bytes,
                "alias": share.alias,
                "division": asdict(share.division),
                "pieces": [
                    {
                        "box": piece.box,
                        "operation": piece.operation,
                        "expression": piece.expression,
                        "reason": piece.reason,
                        "experts": piece.experts,
                        "reads": [_range_object(r) for r in piece.reads],
                    }
                    for piece in share.pieces
                ],
            }
            for share in param.shares
        ],
    }


# A tensor -------------------------------------------------------------------------------------------------------------


def _print_tensor(console: Console, tensor: ExplainedTensor) -> None:
    if tensor.shape is None or tensor.start is None:
        say(console, f"{tensor.name}  tensor that cannot be read{f', of {tensor.file}' if tensor.file else ''}")
    else:
        end = tensor.start + tensor.num_bytes
        say(console, f"{tensor.name}  tensor, {tensor.dtype} {list(tensor.shape)}, {_size(tensor.num_bytes)}")
        say(console, f"  in {tensor.file}, bytes {tensor.start:,} to {end:,}")
    say(console, f"  {_fate(tensor)}")
    if tensor.uses:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 2))
        for column in ("rank", "parameter", "part", "bytes"):
            table.add_column(column, no_wrap=True, justify="right" if column == "bytes" else "left")
        for use in tensor.uses[:MOST_USES]:
            slot = "" if use.slot is None else f" [{use.slot}]"
            param, part = escape(use.param + slot), escape(use.part or "all")
            table.add_row(ranges(use.ranks), param, part, f"{use.reads.num_bytes:,}")
        print_wide(console, table)
        if len(tensor.uses) > MOST_USES:
            say(console, f"  … and {len(tensor.uses) - MOST_USES:,} more; --json has all")
    print_findings(console, tensor.findings)


def _fate(tensor: ExplainedTensor) -> str:
    """Return in a sentence what becomes of a tensor."""
    needed = f"needed by {', '.join(tensor.params)}" if tensor.params else "needed by the model"
    match tensor.fate:
        case "read":
            return f"read by rank {ranges(tensor.ranks)}"
        case "waived":
            by_user = f" (--waive {tensor.pattern})" if tensor.pattern else ""
            also = "; --speculative-config reads it" if tensor.reason == NOT_ENABLED else ""
            return f"not read: waived, {tensor.reason}{by_user}{also}"
        case "defective":
            return f"not read: {needed}, which cannot be complete"
        case "unexpected":
            return "not read: no parameter needs it, and no waiver covers it"
        case "missing":
            return "not in any shard that can be read"


def _tensor_object(tensor: ExplainedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "fate": tensor.fate,
        "reason": tensor.reason,
        "pattern": tensor.pattern,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "file": tensor.file,
        "start": tensor.start,
        "bytes": tensor.num_bytes,
        "params": tensor.params,
        "uses": [_use_object(use) for use in tensor.uses],
        "findings": finding_objects(tensor.findings),
    }


def _use_object(use: TensorUse) -> dict[str, Any]:
    where = {"ranks": use.ranks, "param": use.param, "slot": use.slot, "part": use.part}
    return where | _range_object(use.reads)


# Ranges ---------------------------------------------------------------------------------------------------------------


def _range_line(r: TensorRange) -> str:
    where = f"{r.tensor}  {r.file} bytes {r.start:,} to {r.end:,}"
    if not r.runs.counts:
        return where
    return f"{where}, {r.num_bytes:,} of them in runs of {r.runs.run:,}"


def _range_object(r: TensorRange) -> dict[str, Any]:
    return {
        "tensor": r.tensor,
        "file": r.file,
        "start": r.start,
        "end": r.end,
        "bytes": r.num_bytes,
        "run_bytes": r.runs.run,
        "counts": r.runs.counts,
        "strides": r.runs.strides,
    }


def _some(lines: Sequence[str], most: int) -> Iterator[str]:
    """Yield the lines; of more than ``most``, the first ones and the last."""
    if len(lines) <= most:
        yield from lines
        return
    yield from lines[: most - 1]
    yield f"… {len(lines) - most:,} more; --json has all"
    yield lines[-1]


def _size(num_bytes: int) -> str:
    return gib(num_bytes) if num_bytes >= 2**10 else f"{num_bytes:,} bytes"
