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
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError, VocabularyMismatchError

__all__ = [
    "Blend",
    "NO_TOKEN",
    "entropy",
    "gather_logprobs",
    "geometric_blend",
    "kl_divergence",
    "normalise",
    "sample",
    "tail_logprobs",
    "trust_region_blend",
]

NO_TOKEN = -1
"""What `sample` returns for a row that has no mass to draw from."""

# The solve stops when the KL misses its budget, and one more Newton step would move the blend, by less than this share.
# The promise to callers is 1e-3; being a hundred times better costs a sixth of a pass.
SOLVE_TOLERANCE = 1e-5

# Two evaluations settle most rows and ten all but every last one; logits that spread over thousands take 30. As every
# second one at least halves the bracket, this many are never reached.
MAX_SOLVE_PASSES = 64

# Vocabulary entries solved at a time: on a CPU few enough to stay in its caches (twice as fast), elsewhere enough to
# keep the device busy while the float64 copies stay around a gigabyte.
SOLVE_ENTRIES_CPU = 2**19
SOLVE_ENTRIES_ELSEWHERE = 2**24

# Stands for log 0 inside the solve. Being finite, it keeps `0 * log 0` at 0 without a mask in every pass.
FINITE_LOG_ZERO = -1e30


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
      kl_B: +inf where p has mass on a token that q forbids. Rounding may leave a few 1e-7 below 0 for equal rows.
    """
    logprobs_p_BV, logprobs_q_BV = _widened(logprobs_p_BV), _widened(logprobs_q_BV)
    log_ratio_BV = _zero_where_impossible(logprobs_p_BV, logprobs_p_BV) - _zero_where_impossible(
        logprobs_q_BV, logprobs_p_BV
    )
    # A probability that underflows to 0 still meets an infinite ratio as a positive number: inf, not 0 * inf = NaN.
    probs_p_BV = logprobs_p_BV.exp().clamp_min(torch.finfo(logprobs_p_BV.dtype).tiny)
    return (probs_p_BV * log_ratio_BV).sum(-1)


def geometric_blend(student_logprobs_BV: Tensor, teacher_logprobs_BV: Tensor, blend_B: Tensor | float) -> Tensor:
    """The point at `blend` on the geometric path from student to teacher.

    mu_b ∝ p^(1-b) q^b     (TRB, arXiv 2605.31159, Section 4)

    Args:
      student_logprobs_BV: log p, normalised; -inf allowed.
      teacher_logprobs_BV: log q, same vocabulary.
      blend_B: b in [0, 1]. At 0 the student comes back untouched and at 1 the teacher, whatever the other one forbids;
        in between a token is possible only if both allow it.
    Returns:
      logprobs_BV: log mu_b. A row in which no token is allowed by both is NaN for 0 < b < 1.
    """
    dtype = torch.promote_types(_wide_dtype(student_logprobs_BV), _wide_dtype(teacher_logprobs_BV))
    student_BV, teacher_BV = student_logprobs_BV.to(dtype), teacher_logprobs_BV.to(dtype)
    blend_B1 = torch.as_tensor(blend_B, dtype=dtype, device=student_BV.device).unsqueeze(-1)
    forbidden_BV = (student_BV == -math.inf) | (teacher_BV == -math.inf)
    between_BV = torch.lerp(student_BV.masked_fill(forbidden_BV, 0), teacher_BV.masked_fill(forbidden_BV, 0), blend_B1)
    between_BV = normalise(between_BV.masked_fill(forbidden_BV, -math.inf))
    return torch.where(blend_B1 == 0, student_BV, torch.where(blend_B1 == 1, teacher_BV, between_BV))


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


def _blend_rows(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor, resolution: torch.dtype
) -> Blend:
    """`trust_region_blend` for rows [B, V], computed as wide as the device can and returned in `resolution`."""
    wide = radius_B.dtype
    student_BV, teacher_BV = normalise(student_logits_BV.to(wide)), normalise(teacher_logits_BV.to(wide))
    blend_B = _largest_feasible_blend(student_BV, teacher_BV, radius_B, resolution)
    logprobs_BV = geometric_blend(student_BV, teacher_BV, blend_B)
    return Blend(
        logprobs_BV.to(resolution),
        blend_B.to(resolution),
        kl_divergence(logprobs_BV, student_BV).to(resolution),
        kl_divergence(logprobs_BV, teacher_BV).to(resolution),
    )


def _largest_feasible_blend(
    student_BV: Tensor, teacher_BV: Tensor, radius_B: Tensor, resolution: torch.dtype
) -> Tensor:
    """Largest b in [0, 1], as a number of type `resolution`, with KL(mu_b || p) <= radius.

    Tokens forbidden by either side drop out of the path as soon as b > 0. With S the others, and p_S the student
    restricted to S, KL(mu_b || p) = -log p(S) + KL(mu_b || p_S). The first part is a price that does not depend on b;
    what the radius leaves after it is the budget for the second, which rises from 0.
    """
    forbidden_BV = (student_BV == -math.inf) | (teacher_BV == -math.inf)
    student_misses_B = ((student_BV == -math.inf) & (teacher_BV > -math.inf)).any(-1)
    is_broken_B = student_BV[:, 0].isnan() | teacher_BV[:, 0].isnan()

    # Infinite where S is empty: no budget is left then, and nothing is solved. The clamp is against rounding of log 1.
    price_B = -student_BV.masked_fill(forbidden_BV, -math.inf).logsumexp(-1).clamp_max(0)
    budget_B = radius_B - price_B
    start_BV = (student_BV + price_B[:, None]).masked_fill_(forbidden_BV, FINITE_LOG_ZERO)
    end_BV = teacher_BV.masked_fill(forbidden_BV, FINITE_LOG_ZERO)

    # The far end: q itself, or as near to it as numbers go where q has mass outside of p.
    is_unbounded_B = radius_B == math.inf
    largest_below_one = 1 - torch.finfo(resolution).eps / 2
    end_B = torch.ones_like(radius_B).masked_fill_(student_misses_B & ~is_unbounded_B, largest_below_one)
    kl_at_end_B, _ = _kl_on_path(start_BV, end_BV, end_B)
    is_at_end_B = ((kl_at_end_B <= budget_B) | is_unbounded_B) & (radius_B > 0)

    is_between_B = ~is_at_end_B & (budget_B > 0) & (radius_B > 0) & ~is_broken_B
    between_B = _solve_inside_bracket(start_BV, end_BV, budget_B, end_B, is_between_B, resolution)
    blend_B = torch.where(is_at_end_B, end_B, between_B)
    return blend_B.masked_fill(is_broken_B & (radius_B > 0), math.nan)


def _solve_inside_bracket(
    start_BV: Tensor, end_BV: Tensor, budget_B: Tensor, end_B: Tensor, is_open_B: Tensor, resolution: torch.dtype
) -> Tensor:
    """Root of KL(mu_b || p) = budget in (0, end) where `is_open`; 0 elsewhere.

    Newton's method on log KL as a function of log b: a straight line of slope 2 for small b, and nearly straight where
    a token dear to the teacher, rare for the student, makes the KL grow exponentially. It starts from the small-budget
    limit sqrt(2 budget / Var_p[log q/p]) (Appendix small_budget) and is kept inside a bracket whose lower end is
    feasible. Candidates are rounded to `resolution` before they are tried, so that it is the returned number that fits.
    """
    low_B, high_B = torch.zeros_like(budget_B), end_B
    blend_B = (2 * budget_B / _variance_of_log_ratio(start_BV, end_BV)).sqrt()
    blend_B = _rounded(torch.where(blend_B < end_B, blend_B, end_B / 2), resolution)
    step_B = end_B
    for _ in range(MAX_SOLVE_PASSES):
        if not bool(is_open_B.any()):
            break
        kl_B, slope_B = _kl_on_path(start_BV, end_BV, blend_B)
        newton_B = blend_B * (budget_B / kl_B) ** (kl_B / slope_B)
        newton_step_B = (newton_B - blend_B).abs()
        # Both tests are needed: where the KL is flat the first alone would accept a blend that is far off, where it is
        # steep the second alone a KL that is.
        is_settled_B = (kl_B - budget_B).abs() <= SOLVE_TOLERANCE * budget_B
        is_settled_B &= newton_step_B <= SOLVE_TOLERANCE * blend_B

        is_feasible_B = kl_B <= budget_B
        low_B = torch.where(is_open_B & (is_feasible_B | is_settled_B), blend_B, low_B)
        high_B = torch.where(is_open_B & ~is_feasible_B, blend_B, high_B)

        # Newton while it stays in the bracket and its steps shrink; otherwise, as for a NaN, halve the bracket.
        newton_B, middle_B = _rounded(newton_B, resolution), _rounded((low_B + high_B) / 2, resolution)
        use_newton_B = (newton_B > low_B) & (newton_B < high_B) & (newton_step_B <= step_B / 2)
        next_B = torch.where(use_newton_B, newton_B, middle_B)
        is_exhausted_B = (next_B <= low_B) | (next_B >= high_B)  # no number is left between the two ends
        is_open_B = is_open_B & ~is_settled_B & ~is_exhausted_B
        step_B = (next_B - blend_B).abs()
        blend_B = torch.where(is_open_B, next_B, blend_B)
    return low_B


def _kl_on_path(start_BV: Tensor, end_BV: Tensor, blend_B: Tensor) -> tuple[Tensor, Tensor]:
    """KL(mu_b || p) and d KL / d log b = b² Var_mu[log q/p] at blend b, both >= 0. One pass over the vocabulary.

    With l = log mu_b - log p = b log q/p - A(b):  KL = E_mu[l]  and  b² Var_mu[log q/p] = Var_mu[l].
    """
    log_mu_BV = torch.lerp(start_BV, end_BV, blend_B[:, None]).log_softmax(-1)
    gain_BV = log_mu_BV - start_BV
    weighted_BV = log_mu_BV.exp_().mul_(gain_BV)
    kl_B = weighted_BV.sum(-1)
    slope_B = weighted_BV.mul_(gain_BV).sum(-1) - kl_B.square()
    return kl_B.clamp_min(0), slope_B.clamp_min(0)


def _variance_of_log_ratio(start_BV: Tensor, end_BV: Tensor) -> Tensor:
    """Var_p[log q/p], the curvature of KL(mu_b || p) at b = 0."""
    probs_BV = start_BV.exp()
    log_ratio_BV = end_BV - start_BV
    log_ratio_BV -= (probs_BV * log_ratio_BV).sum(-1, keepdim=True)
    return probs_BV.mul_(log_ratio_BV.square_()).sum(-1)


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
        cannot be a row whose draw is thrown away, the caller refuses it when it reads the tokens.
    """
    wide = _widest_dtype(logprobs_BV.device)
    probs_BV = (_widened(logprobs_BV) - logprobs_BV.amax(-1, keepdim=True)).exp()
    # Zeroed where nothing can be drawn: a parallel sum may rise by rounding over a token of probability 0.
    cumulative_BV = probs_BV.cumsum(-1, dtype=wide).masked_fill_(probs_BV == 0, 0)
    total_B = cumulative_BV.amax(-1)
    largest_uniform = 1 - torch.finfo(wide).eps / 2  # u = 1, the rounding of a float32 draw, would pass the last token
    threshold_B = uniforms_B.to(wide).clamp(max=largest_uniform) * total_B
    tokens_B = (cumulative_BV > threshold_B.unsqueeze(-1)).to(torch.uint8).argmax(-1)
    return torch.where(total_B > 0, tokens_B, NO_TOKEN)


def gather_logprobs(logprobs_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Log-probability of one given token per row: [..., V], [...] -> [...]."""
    return _widened(logprobs_BV).gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1)


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices that cover `length`; one empty slice for length 0."""
    return [slice(first, first + size) for first in range(0, max(length, 1), size)]


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))


def _widest_dtype(device: torch.device) -> torch.dtype:
    """float64, except on Apple's MPS, which does not have it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rounded(values: Tensor, resolution: torch.dtype) -> Tensor:
    return values.to(resolution).to(values.dtype)


def _zero_where_impossible(values_BV: Tensor, logprobs_BV: Tensor) -> Tensor:
    """`values` with 0 where `logprobs` is -inf: filled before any arithmetic, so that no gradient meets 0 * inf."""
    return values_BV.masked_fill(logprobs_BV == -math.inf, 0)


def _radius_per_row(kl_radius: Tensor | float, logits_BV: Tensor) -> Tensor:
    """A valid radius as a tensor beside the logits, or a refusal. A plain number is checked without the device."""
    radius_B = torch.as_tensor(kl_radius)
    if not bool((radius_B >= 0).all()):
        raise ConfigurationError(
            f"kl_radius is {radius_B.min().item():g}; a KL radius is a number of nats and cannot be negative or NaN. "
            "Use 0 for pure student rollouts."
        )
    return radius_B.to(logits_BV.device, _widest_dtype(logits_BV.device))
