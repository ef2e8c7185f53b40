"""Finds bytes of parameters that were not written, by a pattern that fills the memory before.

The pattern is a NaN in every floating-point format of two or four bytes. No weight is NaN, so an element that still has the
pattern was not written. It is also the largest integer of two bytes, so that a GPU finds it in one pass. In formats of one byte,
and in integers, 64 bytes in a row must have it. Memory has the pattern from its allocation (`patterned`), which distinguishes
what the model initialised (a padding of zeros, the default of a cache's scale) from memory that nothing wrote. Small initialised
parameters get the pattern too, and get their default back if they may keep it. Nothing here depends on vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

_WORD: Final = 0x7FFF
_BYTES: Final = _WORD.to_bytes(2, "little", signed=True)
RUN_BYTES: Final = 64
"""Bytes in a row that must have the pattern, in formats where one element may have it by chance."""
SMALL_BYTES: Final = 2**16
"""Initialised parameters up to this size are copied and filled with the pattern."""
FIRST_BYTES: Final = 2**20
"""How far to look, before loading, for memory that was not initialised: such memory has the pattern everywhere."""
_CHUNK_BYTES: Final = 2**26
_HOST_CHUNK_BYTES: Final = 2**20  # stays in the processor's cache
_WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WATCHED: Final = (torch.bfloat16, torch.float32, torch.uint8)
"""A format of each size of word."""
_SENTINEL: Final = 1e30
"""Every default is smaller in magnitude: vLLM marks scales that must be loaded with the lowest float."""
_FACTORIES: Final = (
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
)


class patterned(TorchFunctionMode):  # noqa: N801  # a context manager
    """A context in which uninitialised memory from torch has the pattern."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and write the pattern into what it allocated."""
        result = func(*args, **(kwargs or {}))
        if func in _FACTORIES and isinstance(result, torch.Tensor):
            write_pattern(result)
        return result


def write_pattern(tensor: torch.Tensor) -> None:
    """Fill a tensor with the pattern; one without memory (on ``meta``) is unchanged."""
    if not _has_bytes(tensor):
        return
    raw = tensor.detach()
    if not raw.is_contiguous():
        whole = torch.empty(raw.shape, dtype=raw.dtype, device=raw.device)
        write_pattern(whole)
        raw.copy_(whole)
        return
    flat = raw.reshape(-1).view(torch.uint8)
    even = flat.numel() // 2 * 2
    if flat.storage_offset() % 2 == 0:
        flat[:even].view(torch.int16).fill_(_WORD)
    else:
        flat[:even].view(-1, 2).copy_(_pair(flat.device))
    flat[even:] = _BYTES[0]


def _has_bytes(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "meta" and tensor.layout == torch.strided and tensor.numel() > 0


def unwritten(tensor: torch.Tensor) -> torch.Tensor:
    """Return which bytes of a tensor still have the pattern, as booleans in the order of its elements.

    >>> weight = torch.empty(3, dtype=torch.bfloat16)
    >>> write_pattern(weight)
    >>> weight[1] = 1.0
    >>> unwritten(weight)
    tensor([ True,  True, False, False,  True,  True])
    """
    missing = torch.zeros(tensor.numel() * tensor.element_size(), dtype=torch.bool, device=tensor.device)
    for at, units, size in _search(tensor):
        missing[at : at + units.numel() * size] = units.repeat_interleave(size)
    return missing


def _unit(tensor: torch.Tensor) -> int:
    """Return how many bytes in a row must have the pattern."""
    size = tensor.element_size()
    return size if tensor.is_floating_point() and size >= 2 else RUN_BYTES


def _search(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, int]]:
    """Yield which units have the pattern, part by part: the part's first byte, a boolean a unit, the bytes of a unit.

    Parts without the pattern are skipped.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    unit = _unit(tensor)
    whole = flat.numel() // unit * unit
    words = _words(flat[:whole], min(unit, 8))
    step = _HOST_CHUNK_BYTES if flat.device.type == "cpu" else _CHUNK_BYTES
    before: bool | None = None
    for at in range(0, whole, step):
        units = _units(words[at // min(unit, 8) : min(at + step, whole) // min(unit, 8)], max(unit // 8, 1))
        before = units is not None and bool(units[-1])
        if units is not None:
            yield at, units, unit
    if whole < flat.numel():  # the rest is judged like the run before it; a few bytes alone may match by chance
        rest = flat[whole:]
        same = bool((rest == _pair(flat.device).repeat(RUN_BYTES // 2)[: rest.numel()]).all())
        if same and (rest.numel() >= 4 if before is None else before):
            yield whole, torch.ones_like(rest, dtype=torch.bool), 1


def glance(tensors: Mapping[str, torch.Tensor], first_bytes: int | None = None) -> dict[str, bool]:
    """Return whether tensors may have the pattern (in their ``first_bytes``); if not, they certainly don't have it.

    Tensors that are not whole units are left out. All are on one device, which is waited for once, at the end: on a GPU,
    waiting for every part takes longer than looking at it.
    """
    flags: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)[:first_bytes]
        unit = _unit(tensor)
        if flat.numel() % unit == 0:
            words = _words(flat, min(unit, 8))[:: max(unit // 8, 1)]  # the first word of each unit
            flags[name] = _has_pattern(words)
    return dict(zip(flags, torch.stack([*flags.values()]).tolist(), strict=True)) if flags else {}


def _has_pattern(words: torch.Tensor) -> torch.Tensor:
    """Return whether a word is the pattern, as a boolean on the words' device."""
    if words.dtype == torch.int16:
        return words.max() == _WORD  # without the booleans that a comparison makes of each word
    return torch.stack([(part == _value(words)).any() for part in words.split(_CHUNK_BYTES // 8)]).any()


def prepare(device: torch.device) -> None:
    """Have the device load the kernels that a `Watch` uses; the driver loads each at its first use, for 10 ms or more."""
    tensors = {str(dtype): torch.zeros(RUN_BYTES, dtype=dtype, device=device) for dtype in _WATCHED}
    for tensor in tensors.values():
        write_pattern(tensor)
    glance(tensors)


def _value(words: torch.Tensor) -> int:
    """Return the integer that the pattern is in memory of these words."""
    return int.from_bytes(_BYTES * (words.element_size() // 2), "little", signed=True)


def _words(flat: torch.Tensor, size: int) -> torch.Tensor:
    """Return bytes as integers of ``size`` bytes."""
    return (flat if flat.storage_offset() % size == 0 else flat.clone()).view(_WORDS[size])


def _units(words: torch.Tensor, count: int) -> torch.Tensor | None:
    """Return which units of ``count`` words have the pattern; None: none has."""
    value = _value(words)
    array: Any = words.numpy() if words.device.type == "cpu" else words  # torch compares at half the speed on the CPU
    if count > 1 and not (array[::count] == value).any():
        return None
    same = (array.reshape(-1, count) == value).all(1) if count > 1 else array == value
    return torch.as_tensor(same) if same.any() else None


def _pair(device: torch.device) -> torch.Tensor:
    return torch.tensor(list(_BYTES), dtype=torch.uint8, device=device)


@dataclass(frozen=True, slots=True)
class Gap:
    """A parameter with ``missing_bytes`` that were not written, in these ``slices`` of its first dimension."""

    param: str
    dtype: str
    shape: tuple[int, ...]
    missing_bytes: int
    num_bytes: int
    slices: tuple[int, ...]


class Watch:
    """Compares parameters before and after loading.

    ``may_stay`` says which parameters, by name, need not be written: a cache's scale, or what the engine replaces later. Those
    ``with_room`` have more elements than are stored: zeros follow, and something of each slice must be written. Every
    element of those in ``whole`` must be written, whatever the model initialised.
    """

    def __init__(
        self,
        params: Mapping[str, torch.Tensor],
        may_stay: Callable[[str], bool],
        with_room: Collection[str] = (),
        whole: Collection[str] = (),
    ) -> None:
        self._params = {n: p.detach() for n, p in params.items() if _has_bytes(p)}
        self._may_stay = may_stay
        self._defaults: dict[str, torch.Tensor] = {}
        self._constants: dict[str, torch.Tensor] = {}
        self._rests: dict[str, torch.Tensor] = {}
        marked = glance({n: p for n, p in self._params.items() if p.is_cuda and n not in whole}, FIRST_BYTES)
        for name, param in self._params.items():
            if name in whole and param.is_cuda:
                write_pattern(param)  # which is quicker there than to look for it
                continue
            if name in with_room:
                param.zero_()
                self._clear(name, param)
                continue
            if marked.get(name) or next(_search(param), None) is not None:
                continue  # memory that was not initialised
            if param.numel() * param.element_size() <= SMALL_BYTES:
                self._defaults[name] = param.clone()
                write_pattern(param)
            elif _is_constant(param):
                self._clear(name, param)
            else:
                write_pattern(param)  # old weights, which loading must replace

    def _clear(self, name: str, param: torch.Tensor) -> None:
        """Remember a parameter that holds one constant.

        If a single element can hold the pattern, the pattern replaces the constant: a loader may write the constant itself.
        Elements that still have the pattern afterwards get the constant back (`_fill_rest`).
        """
        first = param.reshape(-1)[:1]
        if _unit(param) == param.element_size():
            self._rests[name] = first.clone()
            write_pattern(param)
        self._constants[name] = param.reshape(-1)[:1].clone()

    def gaps(self) -> list[Gap]:
        """Restore defaults that may stay, and return what was not written, in the parameters' order."""
        marked = glance({n: p for n, p in self._params.items() if p.is_cuda and n not in self._constants})
        left = ((name, param) for name, param in self._params.items() if marked.get(name, True))
        return [gap for name, param in left if (gap := self._gap(name, param)) is not None]

    def _gap(self, name: str, param: torch.Tensor) -> Gap | None:
        constant = self._constants.get(name)
        missing, slices = _unwritten_slices(param) if constant is None else _unchanged_slices(param, constant)
        if name in self._rests:
            _fill_rest(param, self._rests[name])
        if not missing or self._stays(name, param):
            return None
        return Gap(
            name,
            str(param.dtype).removeprefix("torch."),
            tuple(param.shape),
            missing,
            param.numel() * param.element_size(),
            slices if param.ndim > 2 else (),
        )

    def _stays(self, name: str, param: torch.Tensor) -> bool:
        """Restore a parameter's default, if it had one and may keep it; return whether it may stay as it is."""
        default = self._defaults.get(name)
        may = self._may_stay(name) or (default is not None and is_default(name, default))
        if may and default is not None:
            missing = unwritten(param)
            filled = param.contiguous().clone()
            filled.reshape(-1).view(torch.uint8)[missing] = default.contiguous().reshape(-1).view(torch.uint8)[missing]
            param.copy_(filled)
        return may


def is_default(name: str, default: torch.Tensor) -> bool:
    """Whether a parameter may keep its initial value: it is no weight, bias or weight's scale, and no sentinel."""
    leaf = name.rpartition(".")[2]
    if "weight" in leaf or "bias" in leaf:
        return False
    values = default.to(torch.float32)
    return _is_constant(default) and bool((values.abs() < _SENTINEL).all())


def _unwritten_slices(param: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Return how many bytes have the pattern, and the slices of the first dimension that contain them."""
    slice_bytes = max(param.numel() * param.element_size() // (param.shape[0] if param.ndim else 1), 1)
    missing, slices = 0, set[int]()
    for at, units, unit in _search(param):
        if int(units.count_nonzero()) == units.numel():  # torch takes far longer for all()
            missing += units.numel() * unit
            slices.update(range(at // slice_bytes, (at + units.numel() * unit - 1) // slice_bytes + 1))
            continue
        where = units.cpu().nonzero().flatten() * unit + at  # many times as large as the part itself
        missing += where.numel() * unit
        for byte in {*range(0, unit, slice_bytes), unit - 1}:  # a unit may overlap several slices
            slices.update(((where + byte) // slice_bytes).unique_consecutive().tolist())
    return missing, tuple(sorted(slices))


def _unchanged_slices(param: torch.Tensor, constant: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Return the bytes and slices of the first dimension that still hold only the constant.

    A parameter with at most two dimensions counts only as a whole, because rows of padding may stay as they were.
    """
    parts = list(param) if param.ndim > 2 else [param]
    slices = tuple(i for i, part in enumerate(parts) if _is_constant(part, constant))
    return len(slices) * parts[0].numel() * param.element_size(), slices


def _fill_rest(param: torch.Tensor, constant: torch.Tensor) -> None:
    """Replace the elements that have the pattern."""
    word = _WORDS[param.element_size()]
    for part in param if param.ndim > 1 else [param]:
        words = part.view(word)
        part.masked_fill_(words == _value(words), constant[0])


def _is_constant(param: torch.Tensor, constant: torch.Tensor | None = None) -> bool:
    """Return whether all elements are the same, bit for bit (and ``constant``, of one element, where it is given)."""
    words = _rows(param)
    first = words[:1] if constant is None else _rows(constant)
    return not any(bool((part != first).any()) for part in words.split(_CHUNK_BYTES // param.element_size()))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a row of integers for each element."""
    size = tensor.element_size()
    return _words(tensor.contiguous().reshape(-1).view(torch.uint8), min(size, 8)).view(-1, max(size // 8, 1))
