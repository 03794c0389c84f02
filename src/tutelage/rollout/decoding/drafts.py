"""Which drafted tokens stay? The rule that makes a draft of one distribution a sample of another.

The student drafts a token from p, and it is kept with probability min(1, mu / p). Where it is refused, a draw from
what mu has more than p takes its place. Nothing else is asked of mu, so one rule serves every policy. Drafts after a
refused one were drawn for a prefix that does not exist, and are dropped.

Axis letters: B rows, L places of a draft, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.distributions import NO_TOKEN, residual_logprobs
from tutelage.kernels import draw, row_groups
from tutelage.policies import Behaviour

__all__ = ["Verdict", "judge_drafts"]


class Verdict(NamedTuple):
    """What became of the drafts.

    Fields:
      tokens_BL: the drafts, with the first refused one of each row replaced; undefined after it. NO_TOKEN where mu
        has no mass or is NaN.
      lengths_B: tokens that stand: up to and including the replacement, or all L.
      replaced_BL: True at the replacement.
    """

    tokens_BL: Tensor
    lengths_B: Tensor
    replaced_BL: Tensor


@torch.no_grad()
def judge_drafts(student: Behaviour, behaviour: Behaviour, drafts_BL: Tensor, keeps_BL: Tensor) -> Verdict:
    """Keep each draft with probability min(1, mu / p), and replace the first refused one by a draw from (mu - p)+.

    P(token = v) = p(v) min(1, mu(v) / p(v)) + r (mu(v) - p(v))+ / r = mu(v),   r = P(refused) = sum_v (p(v) - mu(v))+
    (Leviathan et al. 2023, arXiv 2211.17192, appendix A.1, with mu in the target's place)

    The rate of acceptance is sum_v min(p, mu) = 1 - TV(mu, p) >= 1 - sqrt(KL(mu || p) / 2) (Pinsker).

    One uniform number u serves both draws: given a refusal it is uniform on [mu/p, 1), and rescaled to [0, 1) it draws
    the replacement, independent of the token that was refused.

    Args:
      student: p at each place [B, L], given the drafts before it.
      behaviour: mu there.
      drafts_BL: drawn from p.
      keeps_BL: uniform in [0, 1), independent of the drafts.
    """
    length = drafts_BL.shape[1]
    drafts_BL = drafts_BL.clamp_min(0)  # a place without a draft has NaN on both sides, and is refused below
    judged = behaviour.judged(drafts_BL, keeps_BL)
    if judged is not None:
        num_kept_B = judged.is_kept_B.long().cumprod(-1).sum(-1)
        replaced_BL = torch.arange(length, device=drafts_BL.device) == num_kept_B[:, None]
        tokens_BL = torch.where(replaced_BL, judged.replacements_B, drafts_BL)
        return Verdict(tokens_BL, (num_kept_B + 1).clamp_max(length), replaced_BL)

    log_ratio_BL = behaviour.logprobs_of(drafts_BL) - student.logprobs_of(drafts_BL)
    keep_probs_BL = log_ratio_BL.double().exp()
    # u < 1, so a ratio of exactly 1 always keeps; u >= 0, so a ratio of 0 never does, and neither does NaN.
    is_kept_BL = keeps_BL < keep_probs_BL
    num_kept_B = is_kept_BL.long().cumprod(-1).sum(-1)
    rows_R = torch.arange(len(num_kept_B), device=num_kept_B.device)
    if rows_R.device.type == "cpu":  # elsewhere the host would have to wait to learn which rows have a refused draft
        rows_R = rows_R[num_kept_B < length]
    is_refused_R, places_R = num_kept_B[rows_R] < length, num_kept_B[rows_R].clamp_max(length - 1)

    keep_probs_R = keep_probs_BL[rows_R, places_R]
    uniforms_R = (keeps_BL[rows_R, places_R] - keep_probs_R) / (1 - keep_probs_R)
    drawn, is_rounding = [], []
    for group in row_groups(len(rows_R), student.vocabulary_size, drafts_BL.device):
        index = (rows_R[group], places_R[group])
        residual_RV = residual_logprobs(student.rows(index), behaviour.rows(index))
        drawn.append(draw(residual_RV, uniforms_R[group]))
        # Two equal distributions may differ in their last bit, and leave nothing to draw from: the draft was right.
        is_rounding.append((drawn[-1] == NO_TOKEN) & (residual_RV.amax(-1) == -torch.inf))
    is_replaced_R = is_refused_R & ~torch.cat(is_rounding)
    drawn_R = torch.where(is_replaced_R, torch.cat(drawn), drafts_BL[rows_R, places_R])

    tokens_BL, replaced_BL = drafts_BL.clone(), torch.zeros_like(is_kept_BL)
    tokens_BL[rows_R, places_R] = drawn_R
    replaced_BL[rows_R, places_R] = is_refused_R
    return Verdict(tokens_BL, (num_kept_B + 1).clamp_max(length), replaced_BL)
