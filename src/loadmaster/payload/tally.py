"""Checks the values of one tensor, part by part in any order, and reports the findings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadmaster.checkpoint import Signature
from loadmaster.findings import Finding, Severity
from loadmaster.formats import Format
from loadmaster.formats.bitsandbytes import read_state
from loadmaster.payload.encodings import EXPONENT, Codes, decode, encoding_of
from loadmaster.payload.modules import place_of
from loadmaster.payload.roles import SCALES, Role
from loadmaster.payload.sketch import Samples, Sketch

LEAST_SCALE: Final = 1e-15
"""Scales below this are implausible. A quantiser writes ``largest / 448`` (or ``/ 7``, ``/ 6``) of a block and guards against
blocks of zeros with a floor; the lowest floor in use is 1e-12 (torchao), which gives 2.2e-15. Exponents have no such bound:
a block of zeros has the smallest one."""

GREATEST_SCALE: Final = 1e4
"""Scales above this are implausible. With E4M3's largest value, 448, they would give weights above four million; F16, in which
many of these weights were first published, ends at 65,504."""

BLOCK: Final = 2**20
"""Bytes of one part when a tensor is compared with its copy."""

PASS: Final = 2**20
"""Bytes that are checked together: they stay in a core's cache from one check to the next."""

HOLE_SHARE: Final = 16
"""A run of zeros is reported if it is at least a sixteenth of its tensor. Rows that pad a vocabulary are about a hundredth."""

HOLE_BYTES: Final = 2**20
"""Inside a layer's tensor it is reported from this many bytes: the chunk size of downloads and sparse files."""

HOLE_HINT: Final = "the file may be sparse, or its download incomplete: fetch it again"

_NARROW: Final = ("F16", "F8_E4M3")
"""Scales in these can become zero by underflow; in a wider dtype, zero was written on purpose."""


@dataclass(slots=True)
class Faults:
    """The number of wrong elements, and the first of them."""

    count: int = 0
    first: int = -1

    def add(self, where: npt.NDArray[np.bool_], at: int) -> None:
        """Count the true elements of a part that begins at element ``at``."""
        if count := int(np.count_nonzero(where)):
            self.merge(Faults(count, at + int(where.argmax())))

    def merge(self, other: Faults) -> None:
        """Add the count of another part."""
        if other.count:
            self.first = other.first if not self.count else min(self.first, other.first)
            self.count += other.count


@dataclass(slots=True)
class Tally:
    """The results for a tensor so far. ``blocks`` are digests of `BLOCK` bytes, by number; for twins only.

    ``samples`` are for the comparison with its peers, where there is one. ``text`` has the bytes of a text about a weight, by
    their offset.
    """

    samples: Samples | None = None
    all_zero: bool = True
    faults: dict[str, Faults] = field(default_factory=dict)
    blocks: dict[int, str] = field(default_factory=dict)
    text: dict[int, bytes] = field(default_factory=dict)

    def merge(self, other: Tally) -> None:
        """Add the results of another part."""
        self.all_zero = self.all_zero and other.all_zero
        for kind, faults in other.faults.items():
            self.faults.setdefault(kind, Faults()).merge(faults)
        self.blocks.update(other.blocks)
        self.text.update(other.text)
        if self.samples is not None and other.samples is not None:
            self.samples.merge(other.samples)

    def look(
        self,
        data: npt.NDArray[np.uint8],
        offset: int,
        dtype: str,
        role: int,
        *,
        twin: bool = False,
        spare: int | None = None,
    ) -> None:
        """Check a part that begins ``offset`` bytes into the tensor, at an element (of a twin: at a block).

        From byte ``spare`` on, the tensor has to be zeros.
        """
        if spare is not None:
            size, start = encoding_of(dtype).size, max(spare, offset)
            rest = data[start - offset :].reshape(-1, size)
            self._add("spare", rest.max(axis=1, initial=0) > 0, start // size)
        encoding = EXPONENT if role == Role.EXPONENT else encoding_of(dtype)
        for begin in range(0, len(data), PASS):
            part = data[begin : begin + PASS]
            if twin:
                number = (offset + begin) // BLOCK
                self.blocks[number] = hashlib.sha256(part.data).hexdigest()[:32]
            codes = encoding.codes(part)
            at = (offset + begin) // encoding.size
            unsound, zero = encoding.peek(codes)
            self.all_zero = self.all_zero and zero
            if unsound:
                nan, infinite = encoding.unsound(codes)
                self._add("nan", nan, at)
                self._add("infinite", infinite, at)
            if self.samples is not None:
                self.samples.look(part, offset + begin, zero=zero, finite=not unsound)
            if role in SCALES:
                self._weigh(codes, at, dtype, role)

    def _weigh(self, codes: Codes, at: int, dtype: str, role: int) -> None:
        factors = decode(codes, dtype)
        least, greatest = _bounds(role)
        smallest, largest = float(factors.min()), float(factors.max())
        if self.samples is not None:
            self.samples.bounds(smallest, largest)
        if smallest >= least and largest <= greatest:
            return
        finite = np.isfinite(factors)
        self._add("zero", factors == 0, at)
        self._add("negative", finite & (factors < 0), at)
        self._add("small", (factors > 0) & (factors < least), at)
        self._add("large", finite & (factors > greatest), at)

    def _add(self, kind: str, where: npt.NDArray[np.bool_], at: int) -> None:
        if where.any():
            self.faults.setdefault(kind, Faults()).add(where, at)


def findings_of(
    tally: Tally, name: str, signature: Signature, file: str, role: int, sketch: Sketch | None = None
) -> Iterator[Finding]:
    """Yield what a tensor's tally, and the sketch of it, amount to."""
    shape = signature.shape

    def say(kind: str, what: str) -> str:
        faults = tally.faults[kind]
        return f"{faults.count:,} {what}, first at {indices_of(faults.first, signature)}"

    total = prod(shape)
    if unsound := [say(k, w) for k, w in (("nan", "NaN"), ("infinite", "infinite")) if k in tally.faults]:
        message = f"of {total:,} values {signature.dtype}: {'; '.join(unsound)}"
        hint = "results computed with it become NaN: fetch the shard again, or convert the model again"
        yield Finding("value-not-finite", "error", message, name, file=file, hint=hint)
    if role in SCALES:
        words = {
            "zero": "zero",
            "negative": "negative",
            "small": f"implausibly small (bound {_bounds(role)[0]:g})",
            "large": f"implausibly large (bound {_bounds(role)[1]:g})",
        }
        if kinds := [k for k in words if k in tally.faults]:
            message = f"of {total:,} factors {signature.dtype}: {'; '.join(say(k, words[k]) for k in kinds)}"
            yield Finding("scale-implausible", _severity(kinds, signature.dtype), message, name, file=file)
    if "spare" in tally.faults:
        message = f"of {total:,} values {signature.dtype}: {say('spare', 'after the last row that the model has are not zero')}"
        hint = "config.json may describe a smaller model than this one; otherwise fetch the shard again"
        yield Finding("value-not-zero", "error", message, name, file=file, hint=hint)
    if role == Role.ZERO and not tally.all_zero:
        message = f"{signature.dtype} {list(shape)} has values other than zero, and the model has no place for them"
        hint = "this model has a bias: config.json must say so (attention_bias, mlp_bias), or the layer was exported wrongly"
        if not name.endswith("bias"):
            hint = "the weight beside it is stored in a layout that is not supported: convert the model again"
        yield Finding("value-not-zero", "error", message, name, file=file, hint=hint)
    elif role == Role.WEIGHT and tally.all_zero and total:
        message = f"every value of {signature.dtype} {list(shape)} is zero"
        yield Finding("value-all-zero", "warning", message, name, file=file, hint=HOLE_HINT)
    elif (
        role == Role.WEIGHT and sketch is not None and sketch.hole and _is_hole(sketch.hole, name, signature.num_bytes)
    ):
        begin, length = sketch.hole
        message = (
            f"{length:,} of its {signature.num_bytes:,} bytes are zero in one run, from byte {begin:,} "
            f"({signature.dtype} {list(shape)})"
        )
        yield Finding("value-hole", "warning", message, name, file=file, hint=HOLE_HINT)


def state_findings(tally: Tally, format_: Format, name: str, file: str) -> Iterator[Finding]:
    """Yield what is wrong with the text about a weight in ``format_``."""
    try:
        read_state(format_, b"".join(part for _, part in sorted(tally.text.items())))
    except ValueError as error:
        hint = "the text is that of another weight, or was damaged: convert the model again"
        yield Finding("value-contradicts", "error", str(error), name, file=file, hint=hint)


def _is_hole(hole: tuple[int, int], name: str, num_bytes: int) -> bool:
    """Return whether a run of zeros is more than the padding of a vocabulary or a kernel."""
    begin, length = hole
    inside = begin + length < num_bytes and place_of(name)[1]
    return length * HOLE_SHARE >= num_bytes or bool(inside and length >= HOLE_BYTES)


def _bounds(role: int) -> tuple[float, float]:
    """Return the least and the greatest plausible factor."""
    if role == Role.DIVISOR:
        return 1 / GREATEST_SCALE, 1 / LEAST_SCALE
    return (0.0 if role == Role.EXPONENT else LEAST_SCALE), GREATEST_SCALE


def _severity(kinds: list[str], dtype: str) -> Severity:
    if "negative" in kinds or ("zero" in kinds and dtype not in _NARROW):
        return "error"
    return "warning"


def indices_of(element: int, signature: Signature) -> list[int] | str:
    """Return an element's indices; for dtypes narrower than a byte, the byte's number."""
    shape: tuple[int, ...] = signature.shape
    dims: Any = (*shape, 2) if signature.dtype == "C64" else shape
    if element >= int(np.prod(dims, dtype=np.int64)):
        return f"byte {element:,}"
    return [int(i) for i in np.unravel_index(element, dims)] if dims else []
