"""The trust-region solve on a few numbers per row; a backend reads those numbers off the logits.

A geometric path is known through its tilted cumulants (TRB, arXiv 2605.31159, Section 4), and no logit has to be
normalised for them. With raw logits s of the student, t of the teacher, r = t - s, and S the tokens that both allow:

    L(b)  = log Σ_S exp((1-b) s + b t)            the log mass
    L'(b) = E_mu_b[r],   L''(b) = Var_mu_b[r]     its derivatives
    KL(mu_b || p)   = price + spent(b),   price = -log p(S)
    spent(b) = KL(mu_b || p_S) = b L'(b) - L(b) + L(0),   spent'(b) = b L''(b)

A backend reads the rows once for the two ends of the path (`Ends`), then once for every blend that is tried. Here
those numbers are turned into the next blend to try, so that two or three reads are enough: the blend is nearly a
straight line in sqrt(2 spent), whose slopes are known wherever the path has been looked at. `triton_kernels` does the
same in one program per row.

Axis letters: B rows, F fields of a point.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["BlendPoint", "Ends", "Judged", "LogitReader", "solve", "whole_and_price"]

# A blend that was tried is accepted when the radius is this near, both in log KL and in log blend. One Newton step from
# there, which needs no read, leaves an error of its square times the curvature, a few 1e-5: the promise is 1e-3.
ACCEPT_WITHIN = 5e-3

# KL(q || p) is known to a few 1e-7, so a radius this near to it counts as reached; the promise leaves 1e-3.
END_TOLERANCE = 1e-6

# No blend lies usefully between two ends of a bracket that are this close, relative.
EXHAUSTED_WITHIN = 1e-9

# Rounds before a bracket is halved in turn with the interpolation. Ordinary rows settle in two.
TRUSTING_ROUNDS = 3

# Only rows whose logits spread over hundreds come near it; if one met it, its last feasible blend would stand.
MAX_ROUNDS = 48


class BlendPoint(NamedTuple):
    """Where the trust region ends on the way from student to teacher, and what it takes to evaluate p, q and mu there.

    log p(v) = s_v - student_log_mass,   log q(v) = t_v - teacher_log_mass,
    log mu(v) = (1-b) s_v + b t_v - blend_log_mass   (s alone for b = 0, t alone for b = 1)

    Fields, in float64 where the device has it:
      blend_B: teacher share b in [0, 1].
      kl_to_student_B: KL(mu || p), the part of the radius that was used.
      student_log_mass_B, teacher_log_mass_B, blend_log_mass_B: log Σ exp of the raw logits s, t and their blend.
    """

    blend_B: Tensor
    kl_to_student_B: Tensor
    student_log_mass_B: Tensor
    teacher_log_mass_B: Tensor
    blend_log_mass_B: Tensor

    def logprobs(self, student_logits_B: Tensor, teacher_logits_B: Tensor) -> Tensor:
        """log mu of one token per row, from its two raw logits."""
        # 0 * -inf must not be formed at the ends of the path.
        log_weights_B = ((1 - self.blend_B) * student_logits_B).masked_fill(self.blend_B == 1, 0)
        log_weights_B = log_weights_B + (self.blend_B * teacher_logits_B).masked_fill(self.blend_B == 0, 0)
        return log_weights_B - self.blend_log_mass_B


class Judged(NamedTuple):
    """What is known of drafts where each is judged by itself.

    Fields:
      is_kept_B: the draft stays if all before it do.
      replacements_B: what stands there otherwise; undefined where the draft is kept. NO_TOKEN where mu is NaN.
    """

    is_kept_B: Tensor
    replacements_B: Tensor


class Ends(NamedTuple):
    """What one read of the rows gives about the two ends of the path.

    Fields:
      student_log_mass_B, teacher_log_mass_B: log Σ exp over the whole row; NaN for a row without mass.
      price_B: -log p(S); inf where no token is allowed by both.
      student_misses_B: some token has mass for the teacher, and none for the student.
      log_mass_2B, mean_2B, variance_2B: L, L' and L'' at blend 0 and 1, over S.
      third_B: third cumulant of r under p_S.
    """

    student_log_mass_B: Tensor
    teacher_log_mass_B: Tensor
    price_B: Tensor
    student_misses_B: Tensor
    log_mass_2B: Tensor
    mean_2B: Tensor
    variance_2B: Tensor
    third_B: Tensor


class LogitReader(Protocol):
    """A batch of logit rows that a backend can read."""

    def ends(self) -> Ends:
        """One read: both ends of the path."""

    def tilts(self, ends: Ends, blend_B: Tensor, is_open_B: Tensor) -> Tensor:
        """One read of the open rows: L, L', L'' and spent, stacked as [4, B]; anything for the other rows."""


class _Points:
    """Points of the path, [F, B]: stacked, so that choosing among them is one operation."""

    def __init__(self, fields: Tensor) -> None:
        self.fields = fields

    @property
    def blend(self) -> Tensor:
        return self.fields[0]

    @property
    def log_mass(self) -> Tensor:
        return self.fields[1]

    @property
    def mean(self) -> Tensor:
        return self.fields[2]

    @property
    def variance(self) -> Tensor:
        return self.fields[3]

    @property
    def spent(self) -> Tensor:
        return self.fields[4]

    def where(self, condition: Tensor, other: _Points) -> _Points:
        """These where the condition holds, the others elsewhere."""
        return _Points(torch.where(condition, self.fields, other.fields))


def solve(reader: LogitReader, radius_B: Tensor, resolution: torch.dtype) -> BlendPoint:
    """Largest blend with KL(mu_b || p) <= radius, row by row; limits as in `distributions.trust_region_blend`.

    Args:
      reader: how to read the logits.
      radius_B: nats, not negative, in the type of the sums.
      resolution: type in which a blend below 1 must stay below 1.
    Returns:
      BlendPoint in the type of `radius_B`.
    """
    ends = reader.ends()
    # 1e9 is above every price but that of rows which share nothing; inf - inf would be NaN.
    finite_radius_B = radius_B.clamp_max(1e9)
    budget_B = finite_radius_B - ends.price_B
    target_B = (2 * budget_B.clamp_min(0)).sqrt()
    low, high = _path_ends(ends)
    is_sound_B = (ends.student_log_mass_B + ends.teacher_log_mass_B).isfinite()
    is_open_B = is_sound_B & (radius_B > 0) & (budget_B > 0)
    guess_B = _first_guess(target_B, low, high, ends.third_B)

    end = high
    is_end_in_reach_B = is_open_B & (end.spent <= budget_B + END_TOLERANCE * finite_radius_B)
    is_at_end_B = (is_end_in_reach_B & ~ends.student_misses_B) | (is_sound_B & (radius_B == math.inf))
    is_near_end_B = is_end_in_reach_B & ~is_at_end_B
    is_open_B = is_open_B & ~(is_end_in_reach_B | is_at_end_B)

    found = nearest = low
    step_B = shift_B = torch.zeros_like(radius_B)
    for round_number in range(MAX_ROUNDS):
        if not bool(is_open_B.any()):
            break
        if round_number:
            guess_B = _next_guess(target_B, low, high, nearest, shift_B, round_number)
        # Rounded to the type that rows are computed in: the point that is found is that of the blend that was tried.
        blend_B = guess_B.to(resolution).to(guess_B.dtype)
        tried = _Points(torch.cat([blend_B[None], reader.tilts(ends, blend_B, is_open_B)]))
        is_feasible_B = tried.spent <= budget_B  # False for a NaN
        low, high = tried.where(is_open_B & is_feasible_B, low), tried.where(is_open_B & ~is_feasible_B, high)
        nearest, shift_B, is_near_B = _nearest(low, high, budget_B)
        found = nearest.where(is_open_B & is_near_B, low.where(is_open_B, found))
        step_B = torch.where(is_open_B & is_near_B, shift_B, step_B)
        is_exhausted_B = high.blend - low.blend <= EXHAUSTED_WITHIN * high.blend
        is_open_B = is_open_B & ~(is_near_B | is_exhausted_B)

    # The last Newton step, in log b; L is continued by its own derivatives, and spent by its slope in log b.
    largest = 1 - torch.finfo(resolution).eps / 2
    blend_B = (found.blend * step_B.exp()).clamp_max(largest)
    moved_B = blend_B - found.blend
    log_mass_B = found.log_mass + moved_B * (found.mean + moved_B * found.variance / 2)
    slope_B = found.blend.square() * found.variance / found.spent
    spent_B = torch.where(step_B == 0, found.spent, found.spent * (slope_B * step_B).exp())
    blend_B = torch.where(is_near_end_B, largest, blend_B)
    log_mass_B = torch.where(is_near_end_B, end.log_mass, log_mass_B)
    kl_B = ends.price_B + torch.where(is_near_end_B | is_at_end_B, end.spent, spent_B)
    kl_B = kl_B.masked_fill_(is_at_end_B & ends.student_misses_B, math.inf)

    is_at_start_B = blend_B == 0
    is_at_start_B &= ~is_at_end_B
    is_broken_B = ~is_sound_B & (radius_B > 0)
    log_mass_B = torch.where(is_at_end_B, ends.teacher_log_mass_B, log_mass_B)
    log_mass_B = torch.where(is_at_start_B, ends.student_log_mass_B, log_mass_B)
    return BlendPoint(
        blend_B.masked_fill_(is_at_end_B, 1).masked_fill_(is_broken_B, math.nan),
        kl_B.masked_fill_(is_at_start_B, 0).masked_fill_(is_broken_B, math.nan),
        ends.student_log_mass_B,
        ends.teacher_log_mass_B,
        log_mass_B.masked_fill_(is_broken_B, math.nan),
    )


def _path_ends(ends: Ends) -> tuple[_Points, _Points]:
    blend_2B = torch.zeros_like(ends.mean_2B)
    blend_2B[1] = 1
    spent_2B = (ends.mean_2B + ends.log_mass_2B[0] - ends.log_mass_2B).clamp_min_(0) * blend_2B
    fields = torch.stack([blend_2B, ends.log_mass_2B, ends.mean_2B, ends.variance_2B, spent_2B])
    return _Points(fields[:, 0]), _Points(fields[:, 1])


def _nearest(low: _Points, high: _Points, budget_B: Tensor) -> tuple[_Points, Tensor, Tensor]:
    """The end of the bracket nearer to the budget in log KL, its Newton step in log b, and whether that is small."""
    is_low_B = budget_B.square() < low.spent * high.spent
    nearest = low.where(is_low_B, high)
    miss_B = (budget_B / nearest.spent).log()
    shift_B = miss_B * nearest.spent / (nearest.blend.square() * nearest.variance)
    return nearest, shift_B, torch.maximum(miss_B.abs(), shift_B.abs()) <= ACCEPT_WITHIN


def _first_guess(target_B: Tensor, low: _Points, high: _Points, third_B: Tensor) -> Tensor:
    """Blend as a quartic in v = sqrt(2 spent), from value, slope and curvature at 0 and value and slope at 1.

    spent = σ² b²/2 + κ b³/3 + ...  gives  b = v/σ - κ v²/(3 σ⁴) + ...;  db/dv = v / (b L'').  The first term alone is
    the small-budget limit sqrt(2 radius / Var_p[r]) (TRB, Appendix small_budget).
    """
    end_B = (2 * high.spent).sqrt()
    first_B = low.variance.rsqrt()
    second_B = -third_B / (3 * low.variance.square())
    rest_B = 1 - (first_B + second_B * end_B) * end_B
    rest_slope_B = end_B * (end_B / high.variance - first_B - 2 * second_B * end_B)
    share_B = target_B / end_B
    quartic_B = (4 * rest_B - rest_slope_B) + (rest_slope_B - 3 * rest_B) * share_B
    guess_B = target_B * (first_B + second_B * target_B) + quartic_B * share_B**3
    straight_B = target_B * first_B
    # A skewed path makes the polynomial swing; then the straight line, and where that leaves [0, 1] the middle.
    guess_B = torch.where((guess_B > straight_B / 4) & (guess_B < straight_B * 4) & (guess_B < 1), guess_B, straight_B)
    return torch.where((guess_B > 0) & (guess_B < 1), guess_B, 0.5)


def _next_guess(
    target_B: Tensor, low: _Points, high: _Points, nearest: _Points, shift_B: Tensor, round_number: int
) -> Tensor:
    """Cubic Hermite of the blend in v = sqrt(2 spent) inside the bracket; else Newton in log KL; else the middle."""
    low_blend_B, high_blend_B, low_spent_B, high_spent_B = low.blend, high.blend, low.spent, high.spent
    middle_B = torch.where(
        high_blend_B < 4 * low_blend_B,
        (low_blend_B + high_blend_B) / 2,
        torch.where(low_blend_B > 0, (low_blend_B * high_blend_B).sqrt(), high_blend_B / 4),
    )
    if round_number >= TRUSTING_ROUNDS and round_number % 2:
        return middle_B
    low_v_B, high_v_B = (2 * low_spent_B).sqrt(), (2 * high_spent_B).sqrt()
    low_slope_B = torch.where(low_blend_B > 0, low_v_B / (low_blend_B * low.variance), low.variance.rsqrt())
    high_slope_B = high_v_B / (high_blend_B * high.variance)
    width_B, rise_B = high_v_B - low_v_B, high_blend_B - low_blend_B
    share_B = (target_B - low_v_B) / width_B
    low_bend_B = low_slope_B * width_B - rise_B
    high_bend_B = rise_B - high_slope_B * width_B
    hermite_B = low_blend_B + share_B * (rise_B + (1 - share_B) * torch.lerp(low_bend_B, high_bend_B, share_B))
    newton_B = nearest.blend * shift_B.exp()
    guess_B = torch.where((newton_B > low_blend_B) & (newton_B < high_blend_B), newton_B, middle_B)
    return torch.where((hermite_B > low_blend_B) & (hermite_B < high_blend_B), hermite_B, guess_B)


def whole_and_price(shared_B: Tensor, lost_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log mass of whole rows (NaN where there is none) and -log of the shared part, from the shared and lost masses."""
    whole_B = torch.logaddexp(shared_B, lost_B)
    price_B = torch.where(shared_B == -math.inf, math.inf, (lost_B - shared_B).exp().log1p())
    return whole_B.masked_fill(whole_B == -math.inf, math.nan), price_B
