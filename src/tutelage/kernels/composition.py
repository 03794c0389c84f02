"""How most policies make mu of student and teacher, and the few numbers per row from which its probabilities follow.

    mu = (1 - w) p + w g,   g ∝ (p^(1-b) q^b)^(1/tau)                      a share of the student, and a tilted part
    mu = p 1[R] + (1 - p(R)) g,   R = the top K of q                       with `top_k`: what leaves R is drawn from g

A token's probability takes two logits, both log masses, the norm of g and p(R). So drafts can be judged and replaced
without a row of probabilities: in plain torch here, for rows at a time that fit a core's cache, and in one Triton
program per row on CUDA (`triton_composition`).

Axis letters: B rows, V vocabulary. p is the student, q the teacher, mu what they compose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.distributions import (
    arithmetic_blend,
    geometric_blend,
    kl_divergence,
    normalise,
    temper,
    widest_dtype,
)

__all__ = ["ComposedRows", "Composition", "CompositionSums"]


class CompositionSums(NamedTuple):
    """What is known of each row once it was read, in float64 where the device has it; NaN for broken rows.

    Fields:
      kl_to_student_B: KL(mu || p) in nats.
      tilted_share_B: the share of g: w, or 1 - p(R).
      norm_B: log Σ (p^(1-b) q^b)^(1/tau), q relative to the offset; 0 for a temperature of 0.
      student_log_mass_B: log Σ exp of the raw logits.
      teacher_offset_B: the teacher's; at a temperature other than 1 its largest logit, since only differences from that
        keep their digits when they are divided by a small temperature.
      least_B: the smallest teacher logit in R, in float64.
      last_place_B: the last place at which that logit is in R: among equals the first are. -1 = nowhere.
      certain_B: at temperature 0 all of g: the teacher's most probable token, the first among equals.
    """

    kl_to_student_B: Tensor
    tilted_share_B: Tensor
    norm_B: Tensor
    student_log_mass_B: Tensor
    teacher_offset_B: Tensor
    least_B: Tensor
    last_place_B: Tensor
    certain_B: Tensor


class _Top(NamedTuple):
    """R: whether a token is in it, its smallest logit, how many of these are in it, and how many there are so far."""

    is_kept_BV: Tensor
    least_B1: Tensor
    num_ties_B1: Tensor
    ties_so_far_BV: Tensor

    def last_place(self) -> Tensor:
        """The place of the last of its smallest logits, -1 for none: so many have fewer of them up to there."""
        num_before_B = (self.ties_so_far_BV < self.num_ties_B1).sum(-1)
        return num_before_B.masked_fill(self.num_ties_B1.squeeze(-1) == 0, -1)


class ComposedRows(NamedTuple):
    """Whole rows, all log-probabilities normalised.

    Fields:
      logprobs_BV: log mu.
      student_BV, teacher_BV, tilted_BV: log p, log q and log g.
      tilted_share_B: as in `CompositionSums`.
      top: R; None without a top K.
    """

    logprobs_BV: Tensor
    student_BV: Tensor
    teacher_BV: Tensor
    tilted_BV: Tensor
    tilted_share_B: Tensor
    top: _Top | None

    def kl_to_student(self) -> Tensor:
        """KL(mu || p) of each row, [B]."""
        return kl_divergence(self.logprobs_BV, self.student_BV)


@dataclass(frozen=True, eq=False)
class Composition:
    """The parts of mu, which are the same in all rows but for `blend`.

    Fields:
      blend: b in [0, 1]; or which rows, [B], tilt to the teacher itself, the others being the student.
      temperature: tau >= 0 of the tilted part; at 0 it is its most probable token. Other than 1 with blend 1 only.
      weight: w in [0, 1] of the tilted part; 1 with a top K.
      top_k: K; None = no token is kept of the student for the teacher's sake.
    """

    blend: float | Tensor = 1.0
    temperature: float = 1.0
    weight: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        is_at_teacher = not isinstance(self.blend, Tensor) and self.blend == 1
        assert is_at_teacher or (self.temperature == 1 and self.top_k is None)
        assert self.top_k is None or self.weight == 1

    @property
    def is_tilted(self) -> bool:
        """mu is g alone."""
        return self.top_k is None and self.weight == 1

    @property
    def has_norm(self) -> bool:
        """The norm of g is not 0 by itself."""
        is_between = not isinstance(self.blend, Tensor) and 0 < self.blend < 1
        return is_between or self.temperature not in (0, 1)

    def of_rows(self, rows: Tensor | slice | tuple[Tensor, ...]) -> Composition:
        """The same for some rows, named by their places in the leading axes."""
        return replace(self, blend=self.blend[rows]) if isinstance(self.blend, Tensor) else self

    def flat(self) -> Composition:
        """The same with one leading axis."""
        return replace(self, blend=self.blend.reshape(-1)) if isinstance(self.blend, Tensor) else self

    def numbers_of_rows(self, logits_BV: Tensor) -> Tensor:
        """b, 1 / tau (0 for a temperature of 0) and w as [3, B], in float64 where the device has it."""
        shape, device = logits_BV.shape[:-1], logits_BV.device
        numbers_3B = torch.empty(3, *shape, dtype=widest_dtype(device), device=device)
        numbers_3B[0] = self.blend
        # The largest float32 divided by a logit's difference is enough to make g certain.
        numbers_3B[1] = min(1 / self.temperature, 1e30) if self.temperature > 0 else 0.0
        numbers_3B[2] = self.weight
        return numbers_3B

    def least_kept(self, teacher_logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest logit in R, and how many tokens of this logit are in R, both [B, 1].

        Where fewer than K tokens are possible the smallest is -inf, and none of it is in R: q forbids the others.
        """
        if self.top_k is None:
            least_B1 = teacher_logits_BV.new_zeros(*teacher_logits_BV.shape[:-1], 1)
            return least_B1, least_B1.long()
        top_BK = teacher_logits_BV.topk(min(self.top_k, teacher_logits_BV.shape[-1]), dim=-1).values
        least_B1 = top_BK[..., -1:]
        num_ties_B1 = (top_BK == least_B1).sum(-1, keepdim=True)
        return least_B1, num_ties_B1.masked_fill(least_B1 == -math.inf, 0)

    def rows(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> ComposedRows:
        """mu and its parts as whole rows."""
        student_BV = normalise(student_logits_BV)
        teacher_BV = student_BV if teacher_logits_BV is student_logits_BV else normalise(teacher_logits_BV)
        if isinstance(self.blend, Tensor):
            tilted_BV = torch.where(self.blend.unsqueeze(-1), teacher_BV, student_BV)
        else:
            tilted_BV = teacher_BV if self.blend == 1 else geometric_blend(student_BV, teacher_BV, self.blend)
        if self.temperature != 1:
            tilted_BV = temper(tilted_BV, self.temperature)
        if self.top_k is None:
            logprobs_BV = arithmetic_blend(student_BV, tilted_BV, self.weight)
            share_B = student_BV.new_full(student_BV.shape[:-1], self.weight)
            return ComposedRows(logprobs_BV, student_BV, teacher_BV, tilted_BV, share_B, None)
        top = self._top(teacher_logits_BV)
        kept_BV = student_BV.masked_fill(~top.is_kept_BV, -math.inf)
        log_share_B = student_BV.masked_fill(top.is_kept_BV, -math.inf).logsumexp(-1)
        logprobs_BV = torch.logaddexp(kept_BV, tilted_BV + log_share_B.unsqueeze(-1))
        return ComposedRows(logprobs_BV, student_BV, teacher_BV, tilted_BV, log_share_B.exp(), top)

    def sums(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor, rows: ComposedRows) -> CompositionSums:
        """The numbers of rows that were made whole."""
        wide = widest_dtype(student_logits_BV.device)
        student_log_mass_B = _log_mass(student_logits_BV, rows.student_BV)
        if self.temperature == 1:
            teacher_offset_B = _log_mass(teacher_logits_BV, rows.teacher_BV)
        else:
            teacher_offset_B = teacher_logits_BV.amax(-1).to(wide)
        highest_B = rows.tilted_BV.amax(-1).to(wide)
        nan_if_broken_B = (highest_B + student_log_mass_B) * 0 if self.top_k or self.weight < 1 else highest_B * 0
        nowhere_B = torch.zeros_like(highest_B, dtype=torch.int64)
        if self.temperature != 1:
            norm_B = -highest_B if self.has_norm else nan_if_broken_B  # the most probable token's logit is the offset
        elif self.has_norm:
            token_B1 = rows.tilted_BV.argmax(-1, keepdim=True)
            log_p_B, log_q_B = (
                logits.gather(-1, token_B1).squeeze(-1).to(wide) - offset_B
                for logits, offset_B in ((student_logits_BV, student_log_mass_B), (teacher_logits_BV, teacher_offset_B))
            )
            norm_B = self._log_weights(log_p_B, log_q_B, self.numbers_of_rows(student_logits_BV)) - highest_B
        else:
            norm_B = nan_if_broken_B
        return CompositionSums(
            rows.kl_to_student().to(wide),
            rows.tilted_share_B.to(wide) + nan_if_broken_B,
            norm_B,
            student_log_mass_B,
            teacher_offset_B,
            nowhere_B.to(wide) if rows.top is None else rows.top.least_B1.squeeze(-1).to(wide),
            nowhere_B - 1 if rows.top is None else rows.top.last_place(),
            teacher_logits_BV.argmax(-1) if self.temperature == 0 else nowhere_B,
        )

    def logprobs(self, sums: CompositionSums, student_B: Tensor, teacher_B: Tensor, tokens_B: Tensor) -> Tensor:
        """log mu of one token per row, from its two raw logits, in the type of the sums."""
        log_p_B, log_q_B = student_B - sums.student_log_mass_B, teacher_B - sums.teacher_offset_B
        if self.temperature == 0:
            tilted_B = torch.where(tokens_B == sums.certain_B, 0.0, -math.inf) - sums.norm_B
        else:
            numbers_3B = self.numbers_of_rows(log_p_B.unsqueeze(-1))
            tilted_B = self._log_weights(log_p_B, log_q_B, numbers_3B) - sums.norm_B
        if self.is_tilted:
            return tilted_B
        if self.top_k is None:
            kept_B = log_p_B + math.log1p(-self.weight)
        else:
            is_tie_B = (teacher_B == sums.least_B) & (tokens_B <= sums.last_place_B)
            kept_B = log_p_B.masked_fill(~((teacher_B > sums.least_B) | is_tie_B), -math.inf)
        logprobs_B: Tensor = torch.logaddexp(kept_B, tilted_B + sums.tilted_share_B.log())
        return logprobs_B

    def _log_weights(self, log_p_B: Tensor, log_q_B: Tensor, numbers_3B: Tensor) -> Tensor:
        """log (p^(1-b) q^b)^(1/tau); 0 * -inf must not be formed at the ends of the path."""
        blend_B, inverse_temperature_B, _ = numbers_3B
        log_weights_B: Tensor = ((1 - blend_B) * log_p_B).masked_fill(blend_B == 1, 0)
        log_weights_B = log_weights_B + (blend_B * log_q_B).masked_fill(blend_B == 0, 0)
        return log_weights_B.mul(inverse_temperature_B)

    def _top(self, teacher_logits_BV: Tensor) -> _Top:
        least_B1, num_ties_B1 = self.least_kept(teacher_logits_BV)
        is_tie_BV = teacher_logits_BV == least_B1
        ties_so_far_BV = is_tie_BV.cumsum(-1, dtype=torch.int32)
        is_kept_BV = (teacher_logits_BV > least_B1) | is_tie_BV.logical_and_(ties_so_far_BV <= num_ties_B1)
        return _Top(is_kept_BV, least_B1, num_ties_B1, ties_so_far_BV)


def _log_mass(logits_BV: Tensor, logprobs_BV: Tensor) -> Tensor:
    """log Σ exp of raw logits, from the most probable token's logit and log-probability."""
    wide = widest_dtype(logits_BV.device)
    return logits_BV.amax(-1).to(wide) - logprobs_BV.amax(-1).to(wide)
