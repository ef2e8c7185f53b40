"""Log probabilities of tokens, their ranks, and the likeliest tokens of a position.

They are of the model's own logits, before penalties and temperature: vLLM's ``raw_logprobs``. The order of tokens is that
of `loadmaster.workers.draws`: of equal logits the lower token id comes first. So ranks are distinct, and the likeliest
token has rank 1 also where others are as likely.

Shapes: R rows, V tokens of the vocabulary, N likeliest tokens, F = 2 + 2N figures of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loadmaster.workers.batch import PositionLogprobs, TokenLogprob
from loadmaster.workers.draws import row_chunks

LOW_32 = 2**32 - 1


def logprob_figures(logits_RV: Tensor, token_ids_R: Tensor, num_top: int) -> Tensor:
    """Return what `position_logprobs` reads, float64 [R, F]: log probability and rank of ``token_ids_R``, and the likeliest.

    They stay on the device. Log probabilities are computed in float64, so that they do not depend on the other rows. A row
    with NaN or infinity, or without finite logits, has NaN.
    """
    chunks = row_chunks(len(logits_RV), logits_RV)
    return torch.cat([_figures(logits_RV[part].to(torch.float32), token_ids_R[part], num_top) for part in chunks])


def position_logprobs(token_id: int, figures: Sequence[float], num_top: int) -> PositionLogprobs:
    """Return the log probabilities of one row from its F figures, with ``num_top`` of the N likeliest tokens."""
    most = (len(figures) - 2) // 2
    num_top = min(num_top, most)
    tops = zip(figures[2 + most : 2 + most + num_top], figures[2 : 2 + num_top], strict=True)
    return PositionLogprobs(
        TokenLogprob(token_id, figures[0], int(figures[1])),
        tuple(TokenLogprob(int(token), logprob, rank) for rank, (token, logprob) in enumerate(tops, start=1)),
    )


def _figures(logits_RV: Tensor, token_ids_R: Tensor, num_top: int) -> Tensor:
    peak_R1 = logits_RV.amax(-1, keepdim=True)
    normaliser_R1 = (logits_RV - peak_R1).to(torch.float64).exp_().sum(-1, keepdim=True).log_() + peak_R1
    token_ids_R1 = token_ids_R.unsqueeze(-1)
    keys_RV = _in_order(logits_RV)
    rank_R1 = (keys_RV > keys_RV.gather(-1, token_ids_R1)).sum(-1, keepdim=True) + 1
    figures = [logits_RV.gather(-1, token_ids_R1) - normaliser_R1, rank_R1]
    if num_top:
        top_ids_RN = LOW_32 - keys_RV.topk(num_top, dim=-1).values.bitwise_and_(LOW_32)
        figures += [logits_RV.gather(-1, top_ids_RN) - normaliser_R1, top_ids_RN]
    return torch.cat([figure.to(torch.float64) for figure in figures], dim=-1)


def _in_order(logits_RV: Tensor) -> Tensor:
    """Return distinct int64 keys that order the tokens: larger for a larger logit, and of equal ones for the lower id.

    The upper 32 bits are the logit: the bits of a float, read as an integer, order like the floats that are not
    negative; for negative ones all bits but the sign are inverted. Adding 0 turns -0.0 into 0.0.
    """
    bits_RV = (logits_RV + 0.0).view(torch.int32)
    ordered_RV = (bits_RV >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits_RV)
    ids_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    return ordered_RV.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(LOW_32 - ids_V)
