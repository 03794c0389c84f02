"""The expensive metrics of rollouts: by place in the answer, on shared tokens, and of repetition.

Everything is read off the rollouts, answer by answer, so that no more than one answer's supports are held in float64.
They are meant to be computed every few steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.diagnostics.metrics import finite_means, per_token
from tutelage.diagnostics.repetition import longest_repeat, repeated_share
from tutelage.diagnostics.table import POSITIONS
from tutelage.distributions import kl_divergence
from tutelage.types import Batch, Rollout
from tutelage.weighting.base import recorded_kl

__all__ = ["detail_metrics"]

QUARTILES = {"blend_inside_quartile_1": 0.25, "blend_inside_median": 0.5, "blend_inside_quartile_3": 0.75}


def detail_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The expensive part of `table.METRICS`; names are left out as in `rollout_metrics`.

    An infinite KL (the teacher rules out a token of the student) counts as the largest finite one of its answer.
    Tokens whose two top-K sets share nothing have no overlap advantage and are left out of it.
    """
    answers = [rollout for rollout in rollouts if len(rollout)]
    repeated = [repeated_share(rollout.response_tokens) for rollout in answers]
    values: dict[str, Tensor | None] = {
        **_by_position(answers),
        **_on_shared_tokens(answers),
        **_blend_quartiles(per_token(answers, "blend")),
        "repeated_4grams": torch.tensor([share for share in repeated if share is not None], dtype=torch.float64),
        "longest_repeat": torch.tensor([float(longest_repeat(r.response_tokens)) for r in answers]).double(),
        "teacher_logprob_drift": _drift(answers),
    }
    return finite_means(values)


def _by_position(answers: Sequence[Rollout]) -> dict[str, Tensor | None]:
    """KL(p || q) and both entropies by place in the answer."""
    if not answers:
        return {}
    on_support = ("student.support_logprobs_TK", "teacher.support_logprobs_TK")
    is_recorded = all(r.tokenwise(path) is not None for r in answers for path in on_support)
    known = {
        "reverse_kl": torch.cat([recorded_kl(Batch([r]), reverse=True) for r in answers]) if is_recorded else None,
        "student_entropy": per_token(answers, "student.entropy_T"),
        "teacher_entropy": per_token(answers, "teacher.entropy_T"),
    }
    stretch_N = torch.searchsorted(torch.tensor(POSITIONS), Batch(answers).positions_N, right=True) - 1
    return {
        f"{name}_at_{first}": values_N[stretch_N == stretch]
        for name, values_N in known.items()
        if values_N is not None
        for stretch, first in enumerate(POSITIONS)
    }


def _on_shared_tokens(answers: Sequence[Rollout]) -> dict[str, Tensor | None]:
    """Both models' probabilities on I, the tokens that are among the K most probable of either.

    overlap_advantage                   (1/|I|) sum_I pbar (log qbar - log pbar) = -KL(pbar || qbar) / |I|, both
                                        renormalised on I                   (arXiv 2604.13016, section 2.3, appendix B)
    overlap_advantage_teacher_weighted  (1/|I|) sum_I q (log p - log q), as they are; what verl calls the same
    """
    found: list[dict[str, Tensor]] = []
    for rollout in answers:
        is_shared_TK = rollout.support_is_shared
        student_TK = rollout.tokenwise("student.support_logprobs_TK")
        teacher_TK = rollout.tokenwise("teacher.support_logprobs_TK")
        if is_shared_TK is None or student_TK is None or teacher_TK is None:
            return {}
        student_TK = student_TK.double().masked_fill(~is_shared_TK, -math.inf)
        teacher_TK = teacher_TK.double().masked_fill(~is_shared_TK, -math.inf)
        count_T = is_shared_TK.sum(-1)
        kl_T = kl_divergence(student_TK.log_softmax(-1), teacher_TK.log_softmax(-1))
        # Not a KL, since neither sums to 1 here; where q is 0 its term is.
        has_mass_TK = teacher_TK > -math.inf
        weighted_T = torch.where(has_mass_TK, teacher_TK.exp() * (student_TK - teacher_TK), 0.0).sum(-1)
        has_shared_T = count_T > 0
        found.append(
            {
                "overlap_advantage": (-kl_T / count_T)[has_shared_T],
                "overlap_advantage_teacher_weighted": (weighted_T / count_T)[has_shared_T],
                "overlap_mass_student": student_TK.exp().sum(-1),
                "overlap_mass_teacher": teacher_TK.exp().sum(-1),
            }
        )
    return {name: torch.cat([values[name] for values in found]) for name in found[0]} if found else {}


def _blend_quartiles(blend_N: Tensor | None) -> dict[str, Tensor | None]:
    """Smallest blends inside (0, 1) that so many of these do not exceed."""
    if blend_N is None:
        return {}
    inside_n = blend_N[(blend_N > 0) & (blend_N < 1)].sort().values
    if not len(inside_n):
        return {}
    return {name: inside_n[math.ceil(share * len(inside_n)) - 1] for name, share in QUARTILES.items()}


def _drift(answers: Sequence[Rollout]) -> Tensor | None:
    """Mean log q of the last T // 4 tokens less that of the first T // 4, of answers of at least 4 tokens."""
    drifts = []
    for rollout in answers:
        if rollout.teacher_logprobs is None:
            return None
        quarter = len(rollout) // 4
        if quarter:
            logprobs_T = rollout.teacher_logprobs.double()
            drifts.append(logprobs_T[-quarter:].mean() - logprobs_T[:quarter].mean())
    return torch.stack(drifts) if drifts else None
