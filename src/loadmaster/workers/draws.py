"""Draws tokens for many rows of logits at once. A row's token depends on that row alone, to the last bit.

A draw is the inverse of the cumulative distribution at a uniform number. The uniform number is a hash of the request's
seed and the token's position (`uniform`), so it needs no generator whose state would depend on the order of requests.
Sums of floating-point numbers depend on their order, and libraries choose the order by the number of rows. Therefore
probabilities become whole numbers first (`_weights`), whose sums stay below 2**53: float64 adds those exactly, in any
order, on any device.

The kept tokens are a prefix of one order: the larger logit first, of equal logits the lower token id first. ``top_k`` and
``top_p`` cut that prefix exactly, also among equal logits, which are frequent in bfloat16.

Shapes: R rows, V tokens of the vocabulary, C candidates (a prefix of that order), K blocks of B tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 256
"""Tokens that a search reads together: first it finds the block, then the token in it."""

SELECT_UP_TO = 1024
"""Sorting all logits is faster than selecting more than this many."""

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """How the token of one row is drawn. ``row`` counts rows of the logits; ``uniform`` is from 0 to less than 1."""

    row: int
    uniform: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float


def uniform(seed: int, position: int) -> float:
    """Return the number from 0 to less than 1 that decides the token at ``position`` of a request with ``seed``.

    Both are mixed by a step of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014); the upper 53 bits are the number.
    """
    return (_mix(_mix(seed) + position) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def likeliest(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's token with the largest logit, and that logit. Of equal logits the lowest token id is returned.

    NaN counts as the largest. This equals ``logits_RV.max(-1)``, and is several times as fast on a CPU, where the maximum
    of a block is vectorised and the search for its place is not.
    """
    block_R = _by_block(logits_RV, lambda part: part.amax(-1)).argmax(-1)
    token_ids_RB, logits_RB = _block(logits_RV, block_R)
    best_R1 = logits_RB.argmax(-1, keepdim=True)
    return token_ids_RB.gather(-1, best_R1).squeeze(-1), logits_RB.gather(-1, best_R1).squeeze(-1)


def draw(logits_RV: Tensor, peak_R: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Return the tokens drawn for the rows that ``draws`` name, [len(draws)]; ``peak_R`` has each row's largest logit.

    The distribution is vLLM's: the logits are divided by the temperature; ``min_p``, ``top_k`` and ``top_p`` remove
    tokens, in this order. Rows whose peak is not finite give some token of the vocabulary.
    """
    vocab_size = logits_RV.shape[-1]
    tokens = torch.zeros(len(draws), dtype=torch.int64, device=logits_RV.device)
    groups: dict[str, list[tuple[int, Draw]]] = {}
    for place, one in enumerate(draws):
        groups.setdefault("top_k" if one.top_k > 0 else "top_p" if one.top_p < 1 else "all", []).append((place, one))
    for kept, whole_group in groups.items():
        for part in row_chunks(len(whole_group), logits_RV):
            group = whole_group[part]
            options = _Options.of(group, vocab_size, logits_RV.device)
            logits_NV = logits_RV.index_select(0, options.rows)
            peak_N1 = peak_R.index_select(0, options.rows).unsqueeze(-1)
            if kept == "all":
                drawn_N = _draw_of_all(logits_NV, peak_N1, options)
            else:
                most = max(min(one.top_k, vocab_size) for _, one in group) if kept == "top_k" else vocab_size
                drawn_N = _draw_of_prefix(logits_NV, _largest(logits_NV, most), peak_N1, options)
            tokens.index_copy_(0, options.places, drawn_N.clamp_(0, vocab_size - 1))
    return tokens


def row_chunks(num_rows: int, logits_RV: Tensor) -> Iterator[slice]:
    """Yield slices of rows that are computed together: temporary tensors then fit a CPU's cache, or are small on a GPU."""
    most = 2**18 if logits_RV.device.type == "cpu" else 2**24
    step = max(1, most // logits_RV.shape[-1])
    yield from (slice(first, first + step) for first in range(0, num_rows, step))


def to_device(values: Sequence[Any] | np.ndarray[Any, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers of the host as a tensor on ``device``, without waiting for the device."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class _Options(NamedTuple):
    """The options of a group of N draws, on the device; all or none of them have a ``top_k``.

    ``places`` is where their tokens go, ``rows`` what they draw from. ``unit`` is the weight of the likeliest token,
    ``least_weight`` the least that ``min_p`` keeps. ``top_k`` and ``least_weight`` are None if they remove nothing.
    """

    places: Tensor  # [N], like rows; the other tensors are [N, 1]
    rows: Tensor
    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor
    least_weight: Tensor | None
    uniform: Tensor
    unit: float

    @classmethod
    def of(cls, group: Sequence[tuple[int, Draw]], vocab_size: int, device: torch.device) -> _Options:
        """Copy the options in one transfer; float64 holds all of them exactly."""
        unit = 2.0 ** (53 - vocab_size.bit_length())
        lines = [
            (
                place,
                one.row,
                one.temperature,
                min(one.top_k, vocab_size),
                one.top_p,
                one.min_p * unit,
                one.uniform,
            )
            for place, one in group
        ]
        places, rows, temperature, top_k, top_p, least_weight, uniform = to_device(lines, torch.float64, device).T
        return cls(
            places.to(torch.int64),
            rows.to(torch.int64),
            temperature.to(torch.float32).unsqueeze(-1),
            top_k.unsqueeze(-1) if group[0][1].top_k > 0 else None,
            top_p.unsqueeze(-1),
            least_weight.unsqueeze(-1) if any(one.min_p > 0 for _, one in group) else None,
            uniform.unsqueeze(-1),
            unit,
        )


def _largest(logits_RV: Tensor, count: int) -> Tensor:
    """Return each row's ``count`` largest logits, the largest first."""
    if count <= SELECT_UP_TO:
        return logits_RV.topk(count, dim=-1).values
    if logits_RV.device.type == "cpu":  # NumPy sorts with vector instructions, several times as fast as torch
        negative = np.negative(logits_RV.numpy())
        negative.sort(axis=-1)
        return torch.from_numpy(negative).neg_()[:, :count]
    return logits_RV.sort(dim=-1, descending=True).values[:, :count]


def _draw_of_all(logits_RV: Tensor, peak_R1: Tensor, options: _Options) -> Tensor:
    """Draw from all tokens that ``min_p`` leaves, in the order of token ids."""
    weights_RV = _weights(logits_RV, peak_R1, options)
    block_sums_RK = _by_block(weights_RV, lambda part: part.sum(-1))
    return _first_beyond(weights_RV, block_sums_RK, _threshold(block_sums_RK.sum(-1, keepdim=True), options))


def _draw_of_prefix(logits_RV: Tensor, sorted_RC: Tensor, peak_R1: Tensor, options: _Options) -> Tensor:
    """Draw from a prefix of the sorted tokens. ``sorted_RC`` are the largest logits, the largest first.

    The draw finds a place in the sorted order. The logit there does not depend on the order of equal logits; which
    token has it, and so many equal ones before it, is looked up afterwards.
    """
    weights_RC = _weights(sorted_RC, peak_R1, options)
    if options.top_k is not None:
        weights_RC.masked_fill_(torch.arange(sorted_RC.shape[-1], device=sorted_RC.device) >= options.top_k, 0)
    sums_RC = weights_RC.cumsum(-1)
    last = sorted_RC.shape[-1] - 1
    # The last token kept is the first that has top_p together with those before it.
    last_kept_R1 = torch.searchsorted(sums_RC, sums_RC[:, -1:] * options.top_p).clamp_(max=last)
    threshold_R1 = _threshold(sums_RC.gather(-1, last_kept_R1), options)
    place_R1 = torch.searchsorted(sums_RC, threshold_R1, right=True).clamp_(max=last)
    logit_R1 = sorted_RC.gather(-1, place_R1)
    num_equal_before_R1 = place_R1 - torch.searchsorted(-sorted_RC, -logit_R1)
    equal_RV = logits_RV == logit_R1
    num_equal_RK = _by_block(equal_RV, lambda part: part.sum(-1, dtype=torch.int32))
    return _first_beyond(equal_RV, num_equal_RK, num_equal_before_R1)


def _weights(logits_RC: Tensor, peak_R1: Tensor, options: _Options) -> Tensor:
    """Return whole numbers in proportion to the probabilities, ``unit`` for the likeliest token; 0 where ``min_p`` removes.

    Exponentials are float64 because their last bit may depend on a token's place in a vector or on the device; rounded
    to a whole number they do not. A token with less than half a unit's part of the largest probability is never drawn:
    2**-36 for a vocabulary of 131,072 tokens.
    """
    scaled_RC = (logits_RC - peak_R1).div_(options.temperature)
    weights_RC = scaled_RC.to(torch.float64).exp_().mul_(options.unit).round_()
    return weights_RC if options.least_weight is None else weights_RC.masked_fill_(weights_RC < options.least_weight, 0)


def _threshold(total_R1: Tensor, options: _Options) -> Tensor:
    """Return the whole numbers, from 0 to less than the totals, at which the cumulative weights are inverted."""
    return torch.minimum((total_R1 * options.uniform).floor_(), total_R1 - 1)


def _first_beyond(weights_RV: Tensor, block_sums_RK: Tensor, threshold_R1: Tensor) -> Tensor:
    """Return each row's first token whose weight and the weights before it add up to more than the threshold."""
    sums_RK = block_sums_RK.cumsum(-1)
    block_R1 = (sums_RK <= threshold_R1).sum(-1, keepdim=True).clamp_(max=sums_RK.shape[-1] - 1)
    before_R1 = sums_RK.gather(-1, block_R1) - block_sums_RK.gather(-1, block_R1)
    token_ids_RB, weights_RB = _block(weights_RV, block_R1.squeeze(-1))
    place_R1 = (weights_RB.cumsum(-1) <= threshold_R1 - before_R1).sum(-1, keepdim=True).clamp_(max=BLOCK - 1)
    return token_ids_RB.gather(-1, place_R1).squeeze(-1)


def _by_block(values_RV: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce each block of tokens. The last block may be shorter than BLOCK."""
    num_whole = values_RV.shape[-1] // BLOCK
    blocks_RKB = values_RV[:, : num_whole * BLOCK].unflatten(-1, (num_whole, BLOCK))
    rest_R1B = values_RV[:, num_whole * BLOCK :].unsqueeze(1)
    parts = [reduce(part) for part in (blocks_RKB, rest_R1B) if part.shape[1] and part.shape[2]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _block(values_RV: Tensor, block_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids of one block a row, and their values. A short block repeats the last token of the vocabulary."""
    offsets_B = torch.arange(BLOCK, device=values_RV.device)
    token_ids_RB = (block_R.unsqueeze(-1) * BLOCK + offsets_B).clamp_(max=values_RV.shape[-1] - 1)
    return token_ids_RB, values_RV.gather(-1, token_ids_RB)
