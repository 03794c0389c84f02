"""Probability algebra over a vocabulary: normalise, compare, blend, truncate, draw.

Every distribution is a tensor of log-probabilities whose last axis is the vocabulary. This is the one place that knows
what `-inf` and `0 * log 0` mean, and the home of the trust-region solve. Everything is computed in float32 or wider,
whatever comes in. Averages over tokens, losses and policies are built elsewhere, from these.

Axis letters: B any number of leading axes (rows), V vocabulary, K kept tokens. p is the student, q the teacher, mu a
blend of both; all quantities are in nats. No function looks at the values of single rows from Python; a row without any
mass, or with a NaN, becomes NaN rather than an exception, because finding it would mean waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, VocabularyMismatchError

__all__ = [
    "Blend",
    "NO_TOKEN",
    "arithmetic_blend",
    "entropy",
    "gather_logprobs",
    "geometric_blend",
    "kl_divergence",
    "log_linear",
    "normalise",
    "residual_logprobs",
    "sample",
    "tail_logprobs",
    "temper",
    "trust_region_blend",
    "wide_dtype",
    "widest_dtype",
]

NO_TOKEN = -1
"""What `sample` returns for a row that has no mass to draw from."""

# The solve stops when the KL misses its budget, and one more Newton step would move the blend, by less than this share.
# The promise to callers is 1e-3; being a hundred times better costs a sixth of a pass.
SOLVE_TOLERANCE = 1e-5

# Most rows settle within 4 passes, and nearly all within 10; logits that spread over thousands take 30. As each pass
# halves the bracket or the step, this many are not reached, and if they were, the last feasible blend would stand.
MAX_SOLVE_PASSES = 64

# Vocabulary entries solved at a time: on a CPU few enough to stay in its caches (twice as fast), elsewhere enough to
# keep the device busy while the float64 copies stay around a gigabyte.
SOLVE_ENTRIES_CPU = 2**19
SOLVE_ENTRIES_ELSEWHERE = 2**24

# Rows up to this length are summed entry by entry when a token is drawn, longer ones in blocks of so many entries. At
# 152,000 that takes a fifth of the time for a row and two thirds for 64; below 8,000 it would take longer.
SUMMED_ENTRY_BY_ENTRY = 2**13
BLOCK_ENTRIES = 128

# Stands for log 0 inside the solve. Being finite, it needs no masks: a forbidden token carries a share of it in its
# log weight, so the weight is 0, and so is everything it is multiplied with. The share is b or 1 - b, at least 1e-16:
# what lies beyond the second number contains the first.
FINITE_LOG_ZERO = -1e30
CONTAINS_LOG_ZERO = 1e12

# The blend at which forbidden tokens are gone and all else is as at 0: their log weights are still -1e10.
JUST_ABOVE_ZERO = 1e-20


def normalise(logits_BV: Tensor) -> Tensor:
    """Log-probabilities of logits: log softmax, in float32 or wider.

    Args:
      logits_BV: any common offset; -inf marks an impossible token.
    Returns:
      logprobs_BV. A row without any finite logit comes back as NaN.
    """
    logits_BV = _widened(logits_BV)
    # Centred first: kernels that subtract `max + log sum` in one go are off by 2e-4 when logits sit around 5000.
    return (logits_BV - logits_BV.detach().amax(-1, keepdim=True)).log_softmax(-1)


def entropy(logprobs_BV: Tensor) -> Tensor:
    """Entropy -Σ p log p of each row, in nats.

    Args:
      logprobs_BV: log p, normalised; -inf allowed, and gradients stay finite there.
    Returns:
      entropy_B.
    """
    logprobs_BV = _widened(logprobs_BV)
    return -(logprobs_BV.exp() * _zero_where_impossible(logprobs_BV, logprobs_BV)).sum(-1)


def kl_divergence(logprobs_p_BV: Tensor, logprobs_q_BV: Tensor) -> Tensor:
    """KL(p || q) = Σ p (log p - log q) of each row, in nats; p is the first argument.

    Args:
      logprobs_p_BV, logprobs_q_BV: normalised; -inf allowed. Where p has no mass the term and its gradients are 0.
    Returns:
      kl_B: +inf where p has mass on a token that q forbids; such a token adds no gradient, so that a row which is left
        out of a loss cannot make it NaN. Rounding may leave a few 1e-7 below 0 for equal rows.
    """
    logprobs_p_BV, logprobs_q_BV = _widened(logprobs_p_BV), _widened(logprobs_q_BV)
    is_absent_BV = logprobs_p_BV == -math.inf
    is_zero_BV = is_absent_BV | (logprobs_q_BV == -math.inf)
    log_ratio_BV = logprobs_p_BV.masked_fill(is_zero_BV, 0) - logprobs_q_BV.masked_fill(is_zero_BV, 0)
    # Filled in as a constant: a probability that underflows to 0 would meet an infinite ratio as 0 * inf = NaN.
    terms_BV = (logprobs_p_BV.exp() * log_ratio_BV).masked_fill(is_zero_BV ^ is_absent_BV, math.inf)
    return terms_BV.sum(-1)


def arithmetic_blend(student_logprobs_BV: Tensor, teacher_logprobs_BV: Tensor, weight: float) -> Tensor:
    """The mixture (1 - w) p + w q, in logs.

    Args:
      student_logprobs_BV, teacher_logprobs_BV: log p and log q, normalised; -inf allowed, and gradients stay finite.
      weight: w in [0, 1], the teacher's share.
    Returns:
      logprobs_BV: -inf only where neither has mass, or the one that has it has no share.
    """
    student_BV, teacher_BV = _widened(student_logprobs_BV), _widened(teacher_logprobs_BV)
    if weight in (0, 1):  # log 0 has no place in `logaddexp`
        return teacher_BV if weight == 1 else student_BV
    is_empty_BV = (student_BV == -math.inf) & (teacher_BV == -math.inf)
    mixed_BV = torch.logaddexp(
        student_BV.masked_fill(is_empty_BV, 0) + math.log1p(-weight),
        teacher_BV.masked_fill(is_empty_BV, 0) + math.log(weight),
    )
    return mixed_BV.masked_fill(is_empty_BV, -math.inf)


def geometric_blend(student_logprobs_BV: Tensor, teacher_logprobs_BV: Tensor, blend_B: Tensor | float) -> Tensor:
    """The point at `blend` on the geometric path from student to teacher.

    mu_b ∝ p^(1-b) q^b     (TRB, arXiv 2605.31159, Section 4)

    Args:
      student_logprobs_BV: log p, normalised; -inf allowed.
      teacher_logprobs_BV: log q, same vocabulary.
      blend_B: b in [0, 1]. At 0 the student is returned unchanged and at 1 the teacher, whatever the other one forbids;
        in between a token is possible only if both allow it.
    Returns:
      logprobs_BV: log mu_b. A row in which no token is allowed by both is NaN for 0 < b < 1.
    """
    dtype = wide_dtype(student_logprobs_BV, teacher_logprobs_BV)
    student_BV, teacher_BV = student_logprobs_BV.to(dtype), teacher_logprobs_BV.to(dtype)
    # A number is filled in there; as a tensor it would be sent, and the host would wait.
    blend_B = blend_B if isinstance(blend_B, Tensor) else student_BV.new_full((), blend_B)
    blend_B1 = blend_B.to(student_BV.device, dtype).unsqueeze(-1)
    forbidden_BV = (student_BV == -math.inf) | (teacher_BV == -math.inf)
    between_BV = torch.lerp(student_BV.masked_fill(forbidden_BV, 0), teacher_BV.masked_fill(forbidden_BV, 0), blend_B1)
    between_BV = normalise(between_BV.masked_fill(forbidden_BV, -math.inf))
    return torch.where(blend_B1 == 0, student_BV, torch.where(blend_B1 == 1, teacher_BV, between_BV))


def log_linear(parts_logprobs_BV: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """A product of powers of distributions: mu ∝ Π_i p_i^(w_i) = softmax(Σ_i w_i log p_i).

    Args:
      parts_logprobs_BV: log p_i, each normalised; -inf allowed.
      weights: w_i, one each, of any sign and sum, not all 0. A part of weight 0 is ignored, and a single part of
        weight 1 is returned unchanged.
    Returns:
      logprobs_BV: a token is possible only if all parts with a weight allow it, those of negative weight too: what one
        of these forbids would otherwise be infinitely likely. A row in which no token is left is NaN.
    """
    present = [(part, weight) for part, weight in zip(parts_logprobs_BV, weights, strict=True) if weight != 0]
    if [weight for _, weight in present] == [1]:
        return _widened(present[0][0])
    forbidden_BV = torch.stack([part == -math.inf for part, _ in present]).any(0)
    sum_BV = sum(weight * _widened(part).masked_fill(forbidden_BV, 0) for part, weight in present)
    assert isinstance(sum_BV, Tensor), "all weights are 0"
    return normalise(sum_BV.masked_fill(forbidden_BV, -math.inf))


def temper(logprobs_BV: Tensor, temperature: float) -> Tensor:
    """p^(1 / temperature), normalised.

    Args:
      logprobs_BV: log p, normalised; -inf allowed.
      temperature: >= 0. At 0 all mass is on the most probable token, the first among equals.
    """
    peak_B1 = logprobs_BV.amax(-1, keepdim=True)
    if temperature > 0:
        # The peak is moved to 0 first: divided by a tiny temperature it would overflow, and take the whole row with it.
        return normalise((logprobs_BV - peak_B1) / temperature)
    token_B1 = logprobs_BV.argmax(-1, keepdim=True)
    # peak - peak is 0, and NaN for a row without mass, which must not turn into a certainty
    return torch.full_like(logprobs_BV, -math.inf).scatter(-1, token_B1, peak_B1 - peak_B1)


class Blend(NamedTuple):
    """Where `trust_region_blend` stopped on the way from student to teacher.

    Fields:
      logprobs_BV: log mu, normalised; -inf marks an impossible token.
      blend_B: teacher share in [0, 1] (beta* of the paper).
      kl_to_student_B: KL(mu || p), the part of the radius that was used.
      kl_to_teacher_B: KL(mu || q), what is left of the way.
    """

    logprobs_BV: Tensor
    blend_B: Tensor
    kl_to_student_B: Tensor
    kl_to_teacher_B: Tensor


@torch.no_grad()
def trust_region_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, kl_radius: Tensor | float) -> Blend:
    """The distribution closest to the teacher within a KL radius of the student.

    mu* = argmin KL(mu || q)  subject to  KL(mu || p) <= radius,  which lies on the geometric path:
    mu* = mu_b*,   mu_b ∝ p^(1-b) q^b,   b* = max { b in [0, 1] : KL(mu_b || p) <= radius }
    (TRB, arXiv 2605.31159, Section 4)

    Limits, each met exactly:
      radius 0 is the student; a radius >= KL(q || p) is the teacher, so equal rows have blend 1 for every radius > 0.
      The student forbids tokens that the teacher wants: KL(q || p) is infinite, and a large radius ends at the largest
        number below 1, where mu is the teacher restricted to what the student allows.
      The teacher forbids tokens that the student wants: any blend > 0 gives them up, which costs at least
        -log p(tokens allowed by both). A radius that does not cover it leaves the student as it is.
      No token is allowed by both: the student, unless the radius is infinite.

    The solve runs in float64, because KL(mu_b || p) at a radius of 1e-6 is lost in the rounding of float32
    log-probabilities (on devices without float64 it runs in float32, which resolves radii down to about 1e-3). Rows
    are solved independently of each other. The host waits for the device once per pass over the vocabulary.

    Args:
      student_logits_BV, teacher_logits_BV: need not be normalised; -inf allowed; same shape.
      kl_radius: nats, a number or a tensor that broadcasts over the rows; eps of the paper.
    Returns:
      Blend, in float32 or wider. Each row keeps KL(mu || p) <= radius (1 + 1e-3) + 1e-7, with equality to that
      tolerance for 0 < blend < 1 (but for the second limit above), and its blend is within 1e-3, relative, of b* for
      radii down to 1e-6. At blend 0 and 1 the log-probabilities are those of `normalise`, bit for bit. Rows that are
      NaN on either side are NaN, except that radius 0 never looks at the teacher.
    """
    if student_logits_BV.shape != teacher_logits_BV.shape:
        raise VocabularyMismatchError(
            f"student logits have shape {tuple(student_logits_BV.shape)} and teacher logits "
            f"{tuple(teacher_logits_BV.shape)}; a blend needs the same rows over the same vocabulary. "
            "Align the two vocabularies first."
        )
    *leading, vocabulary_size = student_logits_BV.shape
    student_BV, teacher_BV = normalise(student_logits_BV), normalise(teacher_logits_BV)
    resolution = torch.promote_types(student_BV.dtype, teacher_BV.dtype)

    student_rows_BV = student_logits_BV.reshape(-1, vocabulary_size)
    teacher_rows_BV = teacher_logits_BV.reshape(-1, vocabulary_size)
    radius_rows_B = _radius_per_row(kl_radius, student_logits_BV).expand(leading).reshape(-1)
    entries_at_once = SOLVE_ENTRIES_CPU if student_BV.device.type == "cpu" else SOLVE_ENTRIES_ELSEWHERE
    solved = [
        _blend_rows(student_rows_BV[rows], teacher_rows_BV[rows], radius_rows_B[rows], resolution)
        for rows in _slices(len(radius_rows_B), max(1, entries_at_once // vocabulary_size))
    ]
    logprobs_BV, blend_B, kl_to_student_B, kl_to_teacher_B = (torch.cat(parts) for parts in zip(*solved, strict=True))
    blend_B = blend_B.reshape(leading)
    # Rounded from float64, the ends could differ from `normalise` in the last bit; a draft token that is exactly as
    # probable under mu as under the student must be seen to be.
    logprobs_BV = torch.where(blend_B.unsqueeze(-1) == 0, student_BV, logprobs_BV.reshape(student_BV.shape))
    logprobs_BV = torch.where(blend_B.unsqueeze(-1) == 1, teacher_BV, logprobs_BV)
    return Blend(logprobs_BV, blend_B, kl_to_student_B.reshape(leading), kl_to_teacher_B.reshape(leading))


class _Path(NamedTuple):
    """The geometric path of rows [B, V], with r = log q - log p; log 0 is FINITE_LOG_ZERO."""

    student_BV: Tensor
    teacher_BV: Tensor
    log_ratio_BV: Tensor


class _Point(NamedTuple):
    """A blend, KL(mu_b || p) there, and E_mu_b[r]."""

    blend_B: Tensor
    kl_B: Tensor
    mean_B: Tensor


def _blend_rows(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor, resolution: torch.dtype
) -> Blend:
    """`trust_region_blend` for rows [B, V], solved in the radius' type and returned in `resolution`.

    The caller fills in the log-probabilities of rows at either end of the path.
    """
    student_BV = student_logits_BV.to(radius_B.dtype).log_softmax(-1).clamp_min_(FINITE_LOG_ZERO)
    teacher_BV = teacher_logits_BV.to(radius_B.dtype).log_softmax(-1).clamp_min_(FINITE_LOG_ZERO)
    path = _Path(student_BV, teacher_BV, teacher_BV - student_BV)
    student_misses_B = path.log_ratio_BV.amax(-1) > CONTAINS_LOG_ZERO
    teacher_misses_B = path.log_ratio_BV.amin(-1) < -CONTAINS_LOG_ZERO

    # KL(q || p) decides whether the teacher itself is in reach.
    kl_at_end_B = (teacher_BV.exp() * path.log_ratio_BV).sum(-1)
    is_sound_B = ~kl_at_end_B.isnan() | (radius_B == 0)
    kl_at_end_B = kl_at_end_B.masked_fill(student_misses_B, math.inf)
    is_at_end_B = (kl_at_end_B <= radius_B) & (radius_B > 0)
    point = _last_feasible_point(path, radius_B, student_misses_B, is_sound_B & ~is_at_end_B, resolution)

    blend_B = torch.where(is_at_end_B, 1, point.blend_B).masked_fill(~is_sound_B, math.nan)
    kl_to_student_B = torch.where(is_at_end_B, kl_at_end_B, point.kl_B).masked_fill(~is_sound_B, math.nan)
    # E_mu[log mu - log q] = E_mu[log mu - log p] - E_mu[r]
    kl_to_teacher_B = (point.kl_B - point.mean_B).clamp_min(0)
    kl_to_teacher_B = kl_to_teacher_B.masked_fill(teacher_misses_B & (blend_B == 0), math.inf)
    kl_to_teacher_B = torch.where(is_at_end_B, 0, kl_to_teacher_B)

    logprobs_BV = torch.lerp(student_BV, teacher_BV, blend_B[:, None]).log_softmax(-1)
    logprobs_BV.masked_fill_(logprobs_BV < -CONTAINS_LOG_ZERO, -math.inf)
    return Blend(*(part.to(resolution) for part in (logprobs_BV, blend_B, kl_to_student_B, kl_to_teacher_B)))


def _last_feasible_point(
    path: _Path, radius_B: Tensor, student_misses_B: Tensor, is_open_B: Tensor, resolution: torch.dtype
) -> _Point:
    """Largest b in [0, 1), as a number of type `resolution`, with KL(mu_b || p) <= radius; 0 where not `is_open`.

    Tokens forbidden by either side drop out of the path as soon as b > 0. With S the others, and p_S the student
    restricted to S, KL(mu_b || p) = -log p(S) + KL(mu_b || p_S). The first part is a price that does not depend on b;
    what the radius leaves after it is the budget for the second, which rises from 0.

    Newton's method solves for log KL as a function of log b: a straight line of slope 2 for small b, and nearly
    straight where a token that is probable for the teacher and rare for the student makes the KL grow exponentially.
    It starts from the small-budget limit sqrt(2 budget / Var_p[r]) (Appendix small_budget) and is kept inside a
    bracket whose lower end is feasible. Candidates are rounded to `resolution` before they are tried: the number
    returned is what fits.
    """
    log_shared_B, mean_B, variance_B = _cumulants(path, torch.full_like(radius_B, JUST_ABOVE_ZERO))
    price_B = -log_shared_B.clamp_max(0)
    budget_B = radius_B.clamp_max(1e9) - price_B  # 1e9 never covers the 1e10 of rows that share nothing
    is_open_B = is_open_B & (budget_B > 0) & (radius_B > 0)

    low = _Point(torch.zeros_like(radius_B), torch.zeros_like(radius_B), mean_B)
    high_B = torch.ones_like(radius_B)
    blend_B = (2 * budget_B / variance_B).sqrt()
    blend_B = torch.where(blend_B < 1, blend_B, 0.5)
    # Where blend 1 is infinitely far the number before it may still fit. If not, Newton works its way down from there.
    blend_B = blend_B.masked_fill(student_misses_B, 1 - torch.finfo(resolution).eps / 2)
    blend_B = _rounded(blend_B, resolution)
    step_B = high_B
    for _ in range(MAX_SOLVE_PASSES):
        if not bool(is_open_B.any()):
            break
        log_mass_B, mean_B, variance_B = _cumulants(path, blend_B)
        kl_B = blend_B * mean_B - log_mass_B
        spent_B = (kl_B - price_B).clamp_min(0)
        newton_B = blend_B * (budget_B / spent_B) ** (spent_B / (blend_B.square() * variance_B))
        newton_step_B = (newton_B - blend_B).abs()
        # Both tests are needed: where the KL is flat the first alone would accept a blend that is far off, where it is
        # steep the second alone a KL that is.
        is_settled_B = (spent_B - budget_B).abs() <= SOLVE_TOLERANCE * budget_B
        is_settled_B &= newton_step_B <= SOLVE_TOLERANCE * blend_B

        is_feasible_B = spent_B <= budget_B
        is_better_B = is_open_B & (is_feasible_B | is_settled_B)
        low = _Point(*(torch.where(is_better_B, *pair) for pair in zip((blend_B, kl_B, mean_B), low, strict=True)))
        high_B = torch.where(is_open_B & ~is_feasible_B, blend_B, high_B)

        # Newton while it stays in the bracket and its steps shrink; otherwise, as for a NaN, halve the bracket.
        newton_B, middle_B = _rounded(newton_B, resolution), _rounded((low.blend_B + high_B) / 2, resolution)
        use_newton_B = (newton_B > low.blend_B) & (newton_B < high_B) & (newton_step_B <= step_B / 2)
        next_B = torch.where(use_newton_B, newton_B, middle_B)
        is_exhausted_B = (next_B <= low.blend_B) | (next_B >= high_B)  # no number is left between the two ends
        is_open_B = is_open_B & ~is_settled_B & ~is_exhausted_B
        blend_B, step_B = next_B, (next_B - blend_B).abs()
    return low


def _cumulants(path: _Path, blend_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A(b) = log Σ p^(1-b) q^b with its derivatives A' = E_mu_b[r] and A'' = Var_mu_b[r]. One pass over the vocabulary.

    They determine a point of the path: KL(mu_b || p) = b A' - A, and its derivative by log b is b² A''.
    """
    log_weights_BV = torch.lerp(path.student_BV, path.teacher_BV, blend_B[:, None])
    peak_B = log_weights_BV.amax(-1)
    weights_BV = log_weights_BV.sub_(peak_B[:, None]).exp_()
    mass_B = weights_BV.sum(-1)
    mean_B = weights_BV.mul_(path.log_ratio_BV).sum(-1) / mass_B
    mean_square_B = weights_BV.mul_(path.log_ratio_BV).sum(-1) / mass_B
    return peak_B + mass_B.log(), mean_B, (mean_square_B - mean_B.square()).clamp_min(0)


def tail_logprobs(logprobs_BV: Tensor, support_ids_BK: Tensor) -> Tensor:
    """Log of the mass outside a support, summed over the complement itself.

    1 - Σ_support p would lose a small tail to rounding; this does not.

    Args:
      logprobs_BV: normalised; -inf allowed.
      support_ids_BK: token ids; repeats count once.
    Returns:
      tail_logprobs_B: -inf, with gradient 0, where nothing is left outside.
    """
    rest_BV = _widened(logprobs_BV).scatter(-1, support_ids_BK, -math.inf)
    is_empty_B = (rest_BV == -math.inf).all(-1)
    # The gradient of log Σ over nothing is NaN, and would reach every parameter: such rows sum over zeros instead.
    tail_B = rest_BV.masked_fill(is_empty_B.unsqueeze(-1), 0).logsumexp(-1)
    return tail_B.masked_fill(is_empty_B, -math.inf)


def residual_logprobs(student_logprobs_BV: Tensor, behaviour_logprobs_BV: Tensor) -> Tensor:
    """log (mu - p)+, not normalised, in float64: what is left of mu once p's share of it is taken. NaN stays NaN."""
    gain_BV = behaviour_logprobs_BV.double().exp() - student_logprobs_BV.double().exp()
    return gain_BV.clamp_min(0).log()


@torch.no_grad()
def sample(logprobs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Tokens drawn by inverting the cumulative mass: the smallest index where it exceeds u times the total.

    Same numbers in, same tokens out: randomness is an argument. Summed in float64, since 150,000 float32 additions
    would shift the boundaries between tokens by more than many of them weigh.

    Args:
      logprobs_BV: need not be normalised; -inf allowed.
      uniforms_B: float64 in [0, 1).
    Returns:
      tokens_B: int64, never a token of probability 0. Rows without any mass, or with a NaN, give NO_TOKEN: where that
        is not a row whose draw is dropped, the caller refuses it when it reads the tokens.
    """
    wide = widest_dtype(logprobs_BV.device)
    probs_BV = (_widened(logprobs_BV) - logprobs_BV.amax(-1, keepdim=True)).exp_()
    if probs_BV.shape[-1] > SUMMED_ENTRY_BY_ENTRY:
        return _sampled_by_blocks(probs_BV, uniforms_B.to(wide))
    # Zeroed where nothing can be drawn: a parallel sum may rise by rounding over a token of probability 0.
    cumulative_BV = probs_BV.cumsum(-1, dtype=wide).masked_fill_(probs_BV == 0, 0)
    total_B = cumulative_BV.amax(-1)
    largest_uniform = 1 - torch.finfo(wide).eps / 2  # u = 1, the rounding of a float32 draw, would pass the last token
    threshold_B = uniforms_B.to(wide).clamp(max=largest_uniform) * total_B
    tokens_B = (cumulative_BV > threshold_B.unsqueeze(-1)).to(torch.uint8).argmax(-1)
    return torch.where(total_B > 0, tokens_B, NO_TOKEN)


def _sampled_by_blocks(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """As `sample` from weights: masses of blocks say in which one the token lies, and only that one is gone through.

    The same sums in another order, so the same token but where u lies within 1e-15 of a boundary.
    """
    blocks_BPn = torch.nn.functional.pad(probs_BV, (0, -probs_BV.shape[-1] % BLOCK_ENTRIES))
    blocks_BPn = blocks_BPn.reshape(*uniforms_B.shape, -(-probs_BV.shape[-1] // BLOCK_ENTRIES), BLOCK_ENTRIES)
    masses_BP = blocks_BPn.sum(-1, dtype=uniforms_B.dtype)
    cumulative_BP = masses_BP.cumsum(-1)
    total_B = cumulative_BP[..., -1]
    threshold_B = uniforms_B.clamp(max=1 - torch.finfo(uniforms_B.dtype).eps / 2) * total_B
    is_beyond_BP = (cumulative_BP > threshold_B.unsqueeze(-1)) & (masses_BP > 0)
    block_B1 = is_beyond_BP.to(torch.uint8).argmax(-1, keepdim=True)
    rest_B1 = threshold_B.unsqueeze(-1) - (cumulative_BP - masses_BP).gather(-1, block_B1)
    probs_Bn = blocks_BPn.gather(-2, block_B1.unsqueeze(-1).expand(*block_B1.shape, BLOCK_ENTRIES)).squeeze(-2)
    is_possible_Bn = probs_Bn > 0
    is_beyond_Bn = (probs_Bn.cumsum(-1, dtype=uniforms_B.dtype) > rest_B1) & is_possible_Bn
    places_n = torch.arange(BLOCK_ENTRIES, device=probs_BV.device)
    # Rounding may leave the last sum of a block at what is left: then its last token is meant.
    last_B = torch.where(is_possible_Bn, places_n, 0).amax(-1)
    place_B = torch.where(is_beyond_Bn.any(-1), is_beyond_Bn.to(torch.uint8).argmax(-1), last_B)
    return torch.where(total_B > 0, block_B1.squeeze(-1) * BLOCK_ENTRIES + place_B, NO_TOKEN)


def gather_logprobs(logprobs_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Log-probability of one given token per row: [..., V], [...] -> [...]."""
    return _widened(logprobs_BV.gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1))


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices that cover `length`; one empty slice for length 0."""
    return [slice(first, first + size) for first in range(0, max(length, 1), size)]


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or the widest type of the tensors where that is wider."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor))


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, except on Apple's MPS, which does not have it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rounded(values: Tensor, resolution: torch.dtype) -> Tensor:
    return values.to(resolution).to(values.dtype)


def _zero_where_impossible(values_BV: Tensor, logprobs_BV: Tensor) -> Tensor:
    """`values` with 0 where `logprobs` is -inf: filled before any arithmetic, so that no gradient meets 0 * inf."""
    return values_BV.masked_fill(logprobs_BV == -math.inf, 0)


def _radius_per_row(kl_radius: Tensor | float, logits_BV: Tensor) -> Tensor:
    """A valid radius as a tensor beside the logits, or a refusal. A plain number is checked without the device."""
    radius_B = kl_radius if isinstance(kl_radius, Tensor) else torch.tensor(kl_radius, dtype=torch.float64)
    if not bool((radius_B >= 0).all()):
        raise ConfigurationError(
            f"kl_radius is {radius_B.min().item():g}; a KL radius is a number of nats and cannot be negative or NaN. "
            "Use 0 for pure student rollouts."
        )
    return radius_B.to(logits_BV.device, widest_dtype(logits_BV.device))
