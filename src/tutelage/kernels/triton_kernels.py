"""The trust region on CUDA: one Triton program per row solves it, judges a draft, and draws; the host decides nothing.

A program reads its row once for both ends of the path, and then for two blends at a time until the radius is met, which
`kernels.solve` explains; the row is in the device's cache by then. Draws invert the cumulative mass as
`distributions.sample` does, so the same uniform number gives the same token on every device, but for rounding: a read
for the mass, a read up to the block where the token lies, and a cumulative sum of that block alone. Entries of a row
are computed in float32 (float64 for float64 logits), whatever is summed over a row in float64. Two devices keep the
digits that float32 would lose at small radii: r = t - s carries its rounding error along, and

    spent(b) = S exp(-A) - (exp(-A) - 1 + A),   S = E_p[phi(x)],   phi(x) = x e^x - e^x + 1,   x = b (r - c)

adds up positive terms only, with A = log E_p[e^x] near 0 when c is close to E_p[r]; its relative error is that of A
itself. (From KL(mu || p) = E_p[mu/p log mu/p] by multiplying out.)

Axis letters: B rows, V vocabulary, P blocks of a row. p is the student, q the teacher.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.distributions import NO_TOKEN
from tutelage.kernels.solve import ACCEPT_WITHIN, END_TOLERANCE, EXHAUSTED_WITHIN, MAX_ROUNDS, BlendPoint, Judged

__all__ = ["blend_point", "draw", "draw_blend", "draw_residual", "judge"]

# Entries of a row at a time, and the warps that share them: 8 numbers of each kind per thread stay in registers.
MAX_BLOCK = 4096
MIN_BLOCK = 256
NUM_WARPS = 8
ROW_WARPS = 16

# Below this log mass the positive sum is the more precise one; above it the plain formula loses nothing.
MAX_SUMMED_LOG_MASS = tl.constexpr(1.0)

# Stands for the peak of a block without any possible token: -inf minus -inf would be NaN.
LOWEST_PEAK = tl.constexpr(-1e30)

# A draw that finds nothing to draw from, told apart from a row that is NaN.
NOTHING = -2

_ACCEPT_WITHIN = tl.constexpr(ACCEPT_WITHIN)
_END_TOLERANCE = tl.constexpr(END_TOLERANCE)
_EXHAUSTED_WITHIN = tl.constexpr(EXHAUSTED_WITHIN)
_MAX_ROUNDS = tl.constexpr(MAX_ROUNDS)
_NO_TOKEN = tl.constexpr(NO_TOKEN)
_NOTHING = tl.constexpr(NOTHING)
_INF = tl.constexpr(float("inf"))


def blend_point(student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor) -> BlendPoint:
    """Where the trust region of each row ends; see `tutelage.kernels.blend_point`, which checks the arguments."""
    point_5B = radius_B.new_empty(5, len(radius_B), dtype=torch.float64)
    _launch(_solve_kernel, student_logits_BV, teacher_logits_BV, radius_B.double(), point_5B)
    return BlendPoint(*point_5B)


def judge(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor, drafts_B: Tensor, keeps_B: Tensor
) -> tuple[BlendPoint, Judged]:
    """Solve, judge and replace in one launch; see `tutelage.kernels.judge_trust_region`."""
    point_5B = radius_B.new_empty(5, len(radius_B), dtype=torch.float64)
    is_kept_B = torch.empty_like(drafts_B, dtype=torch.int8)
    replacements_B = torch.empty_like(drafts_B)
    _launch(
        _judge_kernel,
        student_logits_BV,
        teacher_logits_BV,
        radius_B.double(),
        drafts_B,
        keeps_B.double(),
        point_5B,
        is_kept_B,
        replacements_B,
    )
    return BlendPoint(*point_5B), Judged(is_kept_B.bool(), replacements_B)


def draw_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor) -> Tensor:
    """One token per row from mu; see `tutelage.kernels.draw_blend`."""
    return _drawn(student_logits_BV, teacher_logits_BV, point, uniforms_B, is_residual=False)


def draw_residual(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor
) -> Tensor:
    """One token per row from (mu - p)+ normalised; see `tutelage.kernels.draw_residual`."""
    return _drawn(student_logits_BV, teacher_logits_BV, point, uniforms_B, is_residual=True)


def draw(log_weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token per row from weights; see `tutelage.kernels.draw`. Blocks are summed side by side, then chosen from."""
    log_weights_BV = _contiguous_rows(log_weights_BV)
    num_rows, vocabulary_size = log_weights_BV.shape
    block = _block(vocabulary_size)
    num_blocks = triton.cdiv(vocabulary_size, block)
    sums_2BP = torch.empty(2, num_rows, num_blocks, dtype=torch.float64, device=log_weights_BV.device)
    tokens_B = torch.empty(num_rows, dtype=torch.int64, device=log_weights_BV.device)
    if num_rows:
        is_double = log_weights_BV.dtype == torch.float64
        arguments = (log_weights_BV, log_weights_BV.stride(0), vocabulary_size, sums_2BP)
        with _on(log_weights_BV):
            _block_sums_kernel[(num_rows, num_blocks)](
                *arguments, BLOCK=block, IS_DOUBLE=is_double, num_warps=NUM_WARPS
            )
            _draw_kernel[(num_rows,)](
                *arguments,
                uniforms_B.double(),
                tokens_B,
                num_blocks,
                MAX_BLOCKS=triton.next_power_of_2(num_blocks),
                BLOCK=block,
                IS_DOUBLE=is_double,
                num_warps=NUM_WARPS,
            )
    return tokens_B


def _drawn(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor, *, is_residual: bool
) -> Tensor:
    tokens_B = torch.empty(len(uniforms_B), dtype=torch.int64, device=uniforms_B.device)
    _launch(
        _draw_blend_kernel,
        student_logits_BV,
        teacher_logits_BV,
        torch.stack(list(point)),
        uniforms_B.double(),
        tokens_B,
        IS_RESIDUAL=is_residual,
    )
    return tokens_B.clamp_min_(NO_TOKEN)


def _launch(kernel: Any, student_BV: Tensor, teacher_BV: Tensor, *arguments: Tensor, **constants: bool) -> None:
    """One program per row of two."""
    student_BV, teacher_BV = _contiguous_rows(student_BV), _contiguous_rows(teacher_BV)
    num_rows, vocabulary_size = student_BV.shape
    if not num_rows:
        return
    is_double = torch.float64 in (student_BV.dtype, teacher_BV.dtype)
    with _on(student_BV):
        kernel[(num_rows,)](
            student_BV,
            teacher_BV,
            student_BV.stride(0),
            teacher_BV.stride(0),
            vocabulary_size,
            *(argument.contiguous() for argument in arguments),
            BLOCK=_block(vocabulary_size),
            IS_DOUBLE=is_double,
            num_warps=ROW_WARPS,
            **constants,
        )


def _contiguous_rows(logits_BV: Tensor) -> Tensor:
    return logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()


def _block(vocabulary_size: int) -> int:
    """Entries of a row at a time: a power of two."""
    return int(min(MAX_BLOCK, max(MIN_BLOCK, triton.next_power_of_2(vocabulary_size))))


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


# ------------------------------------------------------------------------------------------------------ a block of rows


@triton.jit
def _load(pointer, row, stride, places, vocabulary_size, IS_DOUBLE: tl.constexpr):
    values = tl.load(pointer + row.to(tl.int64) * stride + places, mask=places < vocabulary_size, other=-float("inf"))
    return values.to(tl.float64) if IS_DOUBLE else values.to(tl.float32)


@triton.jit
def _narrowed(number, IS_DOUBLE: tl.constexpr):
    """To the type that entries are computed in."""
    return number if IS_DOUBLE else number.to(tl.float32)


@triton.jit
def _log_ratio(student, teacher, is_shared):
    """t - s and what the rounding of it lost (Knuth's TwoSum); 0 where a side forbids the token."""
    student = tl.where(is_shared, student, 0.0)
    teacher = tl.where(is_shared, teacher, 0.0)
    ratio = teacher - student
    negated = ratio - teacher
    return ratio, (teacher - (ratio - negated)) - (student + negated)


@triton.jit
def _block_end(values, is_shared, ratio, rest):
    """Peak, mass, lost mass, and mean, variance and third moment of r under the weights of one side."""
    # Finite even for a block without any possible token: -inf minus -inf would be NaN.
    peak = tl.maximum(tl.max(values, 0), LOWEST_PEAK)
    weights = tl.exp(values - peak)
    shared = tl.where(is_shared, weights, 0.0)
    lost = tl.sum(tl.where(is_shared, 0.0, weights), 0)
    mass = tl.sum(shared, 0)
    safe_mass = tl.where(mass > 0, mass, 1.0)
    mean = tl.sum(shared * ratio, 0) / safe_mass
    away = tl.where(is_shared, (ratio - mean) + rest, 0.0)
    correction = tl.sum(shared * away, 0) / safe_mass
    away -= correction
    square = tl.sum(shared * away * away, 0) / safe_mass
    cube = tl.sum(shared * away * away * away, 0) / safe_mass
    return (
        peak.to(tl.float64),
        mass.to(tl.float64),
        lost.to(tl.float64),
        mean.to(tl.float64) + correction.to(tl.float64),
        square.to(tl.float64),
        cube.to(tl.float64),
    )


@triton.jit
def _block_tilt(log_student, probs, away, blend):
    """Peak, mass, mean and variance of r - c under the weights of a blend, and Σ p phi(b (r - c))."""
    x = away * blend
    exponents = log_student + x
    peak = tl.maximum(tl.max(exponents, 0), LOWEST_PEAK)
    weights = tl.exp(exponents - peak)
    mass = tl.sum(weights, 0)
    safe_mass = tl.where(mass > 0, mass, 1.0)
    mean = tl.sum(weights * away, 0) / safe_mass
    centred = away - mean
    square = tl.sum(weights * centred * centred, 0) / safe_mass
    # phi(x)/x² = Σ (k+1)/(k+2)! x^k where the closed form would cancel. Exponents are capped where the sum is not
    # used any more: its row then has a log mass far above the limit.
    small = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1 / 3 + small * (1 / 8 + small * (1 / 30 + small * (1 / 144 + small * (1 / 840 + small * (1 / 5760)))))
    series = small * small * (0.5 + small * series)
    closed = tl.exp(tl.minimum(exponents, 80.0)) * (x - 1.0) + probs
    phi = tl.sum(tl.where(tl.abs(x) < 0.5, probs * series, closed), 0)
    return peak.to(tl.float64), mass.to(tl.float64), mean.to(tl.float64), square.to(tl.float64), phi.to(tl.float64)


@triton.jit
def _scaled(mass, peak, top, IS_DOUBLE: tl.constexpr):
    """A mass relative to another peak; the factor has no more digits than the mass."""
    return mass * tl.exp(_narrowed(peak - top, IS_DOUBLE)).to(tl.float64)


@triton.jit
def _merged(
    peak, mass, mean, square, cube, new_peak, new_mass, new_mean, new_square, new_cube, IS_DOUBLE: tl.constexpr
):
    """Central moments of two parts of a row together."""
    top = tl.maximum(peak, new_peak)
    new_mass = _scaled(new_mass, new_peak, top, IS_DOUBLE)
    total = _scaled(mass, peak, top, IS_DOUBLE) + new_mass
    share = (_narrowed(new_mass, IS_DOUBLE) / _narrowed(tl.where(total > 0, total, 1.0), IS_DOUBLE)).to(tl.float64)
    rest, gap = 1.0 - share, new_mean - mean
    spread = rest * share * gap
    cube = rest * cube + share * new_cube + spread * (3.0 * (new_square - square) + (rest - share) * gap * gap)
    square = rest * square + share * new_square + spread * gap
    return top, total, mean + share * gap, square, cube


# ------------------------------------------------------------------------------------------------ what is read of a row


@triton.jit
def _read_ends(
    student_pointer,
    teacher_pointer,
    row,
    student_stride,
    teacher_stride,
    vocabulary_size,
    BLOCK,
    IS_DOUBLE: tl.constexpr,
):
    """Of both sides: log mass over the shared tokens, what it lacks of the whole, the whole, and moments of r."""
    zero = tl.cast(0.0, tl.float64)
    low_peak, high_peak = zero + LOWEST_PEAK, zero + LOWEST_PEAK
    low_mass, low_lost, low_mean, low_square, low_cube = zero, zero, zero, zero, zero
    high_mass, high_lost, high_mean, high_square, high_cube = zero, zero, zero, zero, zero
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
        teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
        is_shared = (student > -_INF) & (teacher > -_INF)
        ratio, rest = _log_ratio(student, teacher, is_shared)
        peak, mass, lost, mean, square, cube = _block_end(student, is_shared, ratio, rest)
        top = tl.maximum(low_peak, peak)
        low_lost = _scaled(low_lost, low_peak, top, IS_DOUBLE) + _scaled(lost, peak, top, IS_DOUBLE)
        low_peak, low_mass, low_mean, low_square, low_cube = _merged(
            low_peak, low_mass, low_mean, low_square, low_cube, peak, mass, mean, square, cube, IS_DOUBLE
        )
        peak, mass, lost, mean, square, cube = _block_end(teacher, is_shared, ratio, rest)
        top = tl.maximum(high_peak, peak)
        high_lost = _scaled(high_lost, high_peak, top, IS_DOUBLE) + _scaled(lost, peak, top, IS_DOUBLE)
        high_peak, high_mass, high_mean, high_square, high_cube = _merged(
            high_peak, high_mass, high_mean, high_square, high_cube, peak, mass, mean, square, cube, IS_DOUBLE
        )
    return (
        tl.log(low_mass) + low_peak,
        low_lost / low_mass,
        _whole(low_mass + low_lost, low_peak),
        low_mean,
        low_square,
        low_cube,
        tl.log(high_mass) + high_peak,
        high_lost,
        _whole(high_mass + high_lost, high_peak),
        high_mean,
        high_square,
    )


@triton.jit
def _whole(mass, peak):
    """Log mass of a whole row; NaN where there is none."""
    return tl.where(mass > 0, tl.log(mass) + peak, float("nan"))


@triton.jit
def _read_tilts(
    student_pointer,
    teacher_pointer,
    row,
    student_stride,
    teacher_stride,
    vocabulary_size,
    low_log_mass,
    low_mean,
    blend,
    other_blend,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """L, L', L'' and spent at two blends."""
    zero = tl.cast(0.0, tl.float64)
    # What is subtracted is known exactly here, and given back in float64.
    origin, centre = _narrowed(low_log_mass, IS_DOUBLE), _narrowed(low_mean, IS_DOUBLE)
    narrow_blend, narrow_other = _narrowed(blend, IS_DOUBLE), _narrowed(other_blend, IS_DOUBLE)
    student_mass = zero
    peak, other_peak = zero + LOWEST_PEAK, zero + LOWEST_PEAK
    mass, mean, square, phi = zero, zero, zero, zero
    other_mass, other_mean, other_square, other_phi = zero, zero, zero, zero
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
        teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
        is_shared = (student > -_INF) & (teacher > -_INF)
        ratio, rest = _log_ratio(student, teacher, is_shared)
        away = (ratio - centre) + rest
        log_student = tl.where(is_shared, student - origin, -_INF)
        probs = tl.exp(log_student)
        student_mass += tl.sum(probs, 0).to(tl.float64)
        new_peak, new_mass, new_mean, new_square, new_phi = _block_tilt(log_student, probs, away, narrow_blend)
        peak, mass, mean, square, _ = _merged(
            peak, mass, mean, square, zero, new_peak, new_mass, new_mean, new_square, zero, IS_DOUBLE
        )
        phi += new_phi
        new_peak, new_mass, new_mean, new_square, new_phi = _block_tilt(log_student, probs, away, narrow_other)
        other_peak, other_mass, other_mean, other_square, _ = _merged(
            other_peak,
            other_mass,
            other_mean,
            other_square,
            zero,
            new_peak,
            new_mass,
            new_mean,
            new_square,
            zero,
            IS_DOUBLE,
        )
        other_phi += new_phi
    exact_centre = centre.to(tl.float64)
    gain, spent = _gain_and_spent(peak, mass, mean, phi, student_mass, blend)
    other_gain, other_spent = _gain_and_spent(other_peak, other_mass, other_mean, other_phi, student_mass, other_blend)
    # Given back relative to the L(0) that the first read found, of which student_mass is the second opinion.
    return (
        low_log_mass + gain + blend * exact_centre,
        mean + exact_centre,
        square,
        spent,
        low_log_mass + other_gain + other_blend * exact_centre,
        other_mean + exact_centre,
        other_square,
        other_spent,
    )


@triton.jit
def _gain_and_spent(peak, mass, mean, phi, student_mass, blend):
    gain = tl.log(mass) + peak - tl.log(student_mass)  # A
    summed = phi / student_mass * tl.exp(-gain) - ((tl.exp(-gain) - 1.0) + gain)
    spent = tl.where(tl.abs(gain) < MAX_SUMMED_LOG_MASS, summed, blend * mean - gain)
    return gain, tl.where(spent < 0, 0.0, spent)  # not `maximum`, which would make 0 of a NaN


# ------------------------------------------------------------------------------------------------------------ the solve


@triton.jit
def _first_guess(target, low_variance, third, high_variance, high_spent):
    """As `solve._first_guess`."""
    end = tl.sqrt(2.0 * high_spent)
    first = 1.0 / tl.sqrt(low_variance)
    second = -third / (3.0 * low_variance * low_variance)
    rest = 1.0 - (first + second * end) * end
    rest_slope = end * (end / high_variance - first - 2.0 * second * end)
    share = target / end
    quartic = (4.0 * rest - rest_slope) + (rest_slope - 3.0 * rest) * share
    guess = target * (first + second * target) + quartic * share * share * share
    straight = target * first
    guess = tl.where((guess > straight / 4.0) & (guess < straight * 4.0) & (guess < 1.0), guess, straight)
    return tl.where((guess > 0.0) & (guess < 1.0), guess, 0.5)


@triton.jit
def _next_guess(target, middle, low, low_variance, low_spent, high, high_variance, high_spent, nearest, shift):
    """As `solve._next_guess`; the middle is tried beside it, in every round."""
    low_v, high_v = tl.sqrt(2.0 * low_spent), tl.sqrt(2.0 * high_spent)
    low_slope = tl.where(low > 0, low_v / (low * low_variance), 1.0 / tl.sqrt(low_variance))
    high_slope = high_v / (high * high_variance)
    width, rise = high_v - low_v, high - low
    share = (target - low_v) / width
    low_bend = low_slope * width - rise
    high_bend = rise - high_slope * width
    bend = low_bend + share * (high_bend - low_bend)
    hermite = low + share * (rise + (1.0 - share) * bend)
    newton = nearest * tl.exp(shift)
    guess = tl.where((newton > low) & (newton < high), newton, middle)
    return tl.where((hermite > low) & (hermite < high), hermite, guess)


@triton.jit
def _solved(
    student_pointer,
    teacher_pointer,
    row,
    student_stride,
    teacher_stride,
    vocabulary_size,
    radius,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The fields of a BlendPoint: `solve.solve` for one row, which reads two blends at a time."""
    zero, one = tl.cast(0.0, tl.float64), tl.cast(1.0, tl.float64)
    (
        low_log_mass,
        lost_share,
        student_log_mass,
        low_mean,
        low_variance,
        third,
        high_log_mass,
        high_lost,
        teacher_log_mass,
        high_mean,
        high_variance,
    ) = _read_ends(
        student_pointer, teacher_pointer, row, student_stride, teacher_stride, vocabulary_size, BLOCK, IS_DOUBLE
    )
    start_log_mass, start_mean = low_log_mass, low_mean
    price = tl.where(low_log_mass == -_INF, _INF, _log_one_plus(lost_share))
    student_misses = high_lost > 0
    finite_radius = tl.minimum(radius, 1e9)  # above every price but that of rows which share nothing
    budget = finite_radius - price
    target = tl.sqrt(tl.where(budget > 0, 2.0 * budget, 0.0))
    both = student_log_mass + teacher_log_mass
    is_sound = both - both == 0.0
    is_open = is_sound & (radius > 0) & (budget > 0)

    low, low_spent, high = zero, zero, one
    high_spent = high_mean + low_log_mass - high_log_mass
    high_spent = tl.where(high_spent < 0, 0.0, high_spent)
    is_at_end = is_sound & (radius == _INF)
    is_near_end = zero > one
    end_spent, end_log_mass = high_spent, high_log_mass
    found, found_log_mass, found_mean, found_variance, found_spent = zero, low_log_mass, low_mean, low_variance, zero
    step = zero
    guess = _first_guess(target, low_variance, third, high_variance, high_spent)
    # The teacher's end was read with sums that lose small differences: look at it again beside the first guess.
    other_guess = one
    round_number = 0
    while is_open & (round_number < _MAX_ROUNDS):
        # Rounded to the type that entries are computed in: what is found is that of the blend that was asked for.
        guess = _narrowed(guess, IS_DOUBLE).to(tl.float64)
        other_guess = _narrowed(other_guess, IS_DOUBLE).to(tl.float64)
        log_mass, mean, variance, spent, other_log_mass, other_mean, other_variance, other_spent = _read_tilts(
            student_pointer,
            teacher_pointer,
            row,
            student_stride,
            teacher_stride,
            vocabulary_size,
            start_log_mass,
            start_mean,
            guess,
            other_guess,
            BLOCK,
            IS_DOUBLE,
        )
        if round_number == 0:
            high_variance, high_spent = other_variance, other_spent
            high_log_mass, high_mean = other_log_mass, other_mean
            end_spent, end_log_mass = other_spent, other_log_mass
            is_reached = other_spent <= budget + _END_TOLERANCE * finite_radius
            is_at_end = is_at_end | (is_reached & (not student_misses))
            is_near_end = is_reached & (not is_at_end)
            is_open = (not is_at_end) & (not is_near_end)
        if is_open:
            # The tightest bracket: the largest feasible and the smallest infeasible blend. A NaN is infeasible.
            if spent <= budget:
                low, low_log_mass, low_mean, low_variance, low_spent = guess, log_mass, mean, variance, spent
            else:
                high, high_log_mass, high_mean, high_variance, high_spent = guess, log_mass, mean, variance, spent
            if (other_spent <= budget) & (other_guess > low):
                low, low_log_mass, low_mean, low_variance, low_spent = (
                    other_guess,
                    other_log_mass,
                    other_mean,
                    other_variance,
                    other_spent,
                )
            if (not (other_spent <= budget)) & (other_guess < high):
                high, high_log_mass, high_mean, high_variance, high_spent = (
                    other_guess,
                    other_log_mass,
                    other_mean,
                    other_variance,
                    other_spent,
                )
            # The end of the bracket that is nearer to the budget in log KL, and its Newton step in log b.
            is_low = budget * budget < low_spent * high_spent
            near = tl.where(is_low, low, high)
            near_spent = tl.where(is_low, low_spent, high_spent)
            near_variance = tl.where(is_low, low_variance, high_variance)
            miss = tl.log(budget / near_spent)
            shift = miss * near_spent / (near * near * near_variance)
            is_near = (tl.abs(miss) <= _ACCEPT_WITHIN) & (tl.abs(shift) <= _ACCEPT_WITHIN)
            is_high_found = is_near & (not is_low)
            found = tl.where(is_high_found, high, low)
            found_log_mass = tl.where(is_high_found, high_log_mass, low_log_mass)
            found_mean = tl.where(is_high_found, high_mean, low_mean)
            found_variance = tl.where(is_high_found, high_variance, low_variance)
            found_spent = tl.where(is_high_found, high_spent, low_spent)
            step = tl.where(is_near, shift, 0.0)
            is_open = (not is_near) & (high - low > _EXHAUSTED_WITHIN * high)
            middle = tl.where(high < 4.0 * low, (low + high) / 2.0, tl.where(low > 0, tl.sqrt(low * high), high / 4.0))
            guess = _next_guess(
                target, middle, low, low_variance, low_spent, high, high_variance, high_spent, near, shift
            )
            other_guess = middle
        round_number += 1

    # The last Newton step, in log b; L is continued by its own derivatives, and spent by its slope in log b.
    largest = one - (1.1102230246251565e-16 if IS_DOUBLE else 5.9604644775390625e-08)  # 2^-53, 2^-24
    blend = tl.minimum(found * tl.exp(step), largest)
    moved = blend - found
    log_mass = found_log_mass + moved * (found_mean + moved * found_variance / 2.0)
    slope = found * found * found_variance / found_spent
    spent = tl.where(step == 0, found_spent, found_spent * tl.exp(slope * step))
    blend = tl.where(is_near_end, largest, blend)
    log_mass = tl.where(is_near_end, end_log_mass, log_mass)
    kl = price + tl.where(is_near_end | is_at_end, end_spent, spent)
    kl = tl.where(is_at_end & student_misses, _INF, kl)
    is_at_start = (blend == 0) & (not is_at_end)
    is_broken = (not is_sound) & (radius > 0)
    log_mass = tl.where(is_at_end, teacher_log_mass, log_mass)
    log_mass = tl.where(is_at_start, student_log_mass, log_mass)
    nan = float("nan")
    return (
        tl.where(is_broken, nan, tl.where(is_at_end, 1.0, blend)),
        tl.where(is_broken, nan, tl.where(is_at_start, 0.0, kl)),
        student_log_mass,
        teacher_log_mass,
        tl.where(is_broken, nan, log_mass),
    )


@triton.jit
def _log_one_plus(x):
    """log(1 + x) without the rounding of 1 + x (Kahan)."""
    whole = 1.0 + x
    away = whole - 1.0
    return tl.where(away == 0.0, x, tl.where(whole < _INF, tl.log(whole) * (x / tl.where(away == 0.0, 1.0, away)), x))


@triton.jit
def _store_point(pointer, row, num_rows, blend, kl, student_log_mass, teacher_log_mass, log_mass):
    tl.store(pointer + row, blend)
    tl.store(pointer + num_rows + row, kl)
    tl.store(pointer + 2 * num_rows + row, student_log_mass)
    tl.store(pointer + 3 * num_rows + row, teacher_log_mass)
    tl.store(pointer + 4 * num_rows + row, log_mass)


@triton.jit
def _solve_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    radius_pointer,
    point_pointer,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The point of a row."""
    row = tl.program_id(0)
    radius = tl.load(radius_pointer + row)
    blend, kl, student_log_mass, teacher_log_mass, log_mass = _solved(
        student_pointer, teacher_pointer, row, student_stride, teacher_stride, vocabulary_size, radius, BLOCK, IS_DOUBLE
    )
    num_rows = tl.num_programs(0)
    _store_point(point_pointer, row, num_rows, blend, kl, student_log_mass, teacher_log_mass, log_mass)


# ------------------------------------------------------------------------------------------------------------ the draws


@triton.jit
def _weights(
    student_pointer,
    teacher_pointer,
    row,
    student_stride,
    teacher_stride,
    vocabulary_size,
    block,
    blend,
    student_log_mass,
    teacher_log_mass,
    norm,
    IS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """mu, or (mu - p)+, of a block, in float64."""
    places = block * BLOCK + tl.arange(0, BLOCK)
    # In two halves, as logits may sit around 5000.
    student_head, teacher_head = _narrowed(student_log_mass, IS_DOUBLE), _narrowed(teacher_log_mass, IS_DOUBLE)
    student_rest = _narrowed(student_log_mass - student_head.to(tl.float64), IS_DOUBLE)
    teacher_rest = _narrowed(teacher_log_mass - teacher_head.to(tl.float64), IS_DOUBLE)
    student_share, teacher_share = _narrowed(1.0 - blend, IS_DOUBLE), _narrowed(blend, IS_DOUBLE)
    norm = _narrowed(norm, IS_DOUBLE)
    student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
    teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
    student = (student - student_head) - student_rest
    teacher = (teacher - teacher_head) - teacher_rest
    # At an end of the path the other side has no say, and 0 * -inf must not be formed.
    log_weights = tl.where(student_share == 0, 0.0, student * student_share)
    log_weights += tl.where(teacher_share == 0, 0.0, teacher * teacher_share)
    weights = tl.exp(log_weights - norm)
    if IS_RESIDUAL:
        # mu - p = mu (1 - p/mu) keeps its digits where mu is close to p, and where p is 0.
        gain = (teacher - student) * teacher_share - norm
        weights = tl.where(gain > 0, weights * _one_minus_exp(gain, IS_DOUBLE), 0.0)
    return tl.where(places < vocabulary_size, weights, 0.0).to(tl.float64)


@triton.jit
def _one_minus_exp(z, IS_DOUBLE: tl.constexpr):
    """1 - exp(-z) for z > 0, by its series where the difference would cancel."""
    series = 1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120 - z * (1 / 720 - z * (1 / 5040)))))
    limit = 0.0078125 if IS_DOUBLE else 0.25
    return tl.where(z < limit, z * (1.0 - z * series), 1.0 - tl.exp(-z))


@triton.jit
def _below_one(uniform):
    """A uniform number that passes no last token; rescaling may have rounded it up to 1."""
    return tl.minimum(uniform, tl.cast(1.0, tl.float64) - 1.1102230246251565e-16)


@triton.jit
def _place_of(weights, threshold, first):
    """The first token at which the cumulative weight of a block exceeds the threshold, never one without weight."""
    places = first + tl.arange(0, weights.shape[0])
    cumulative = tl.cumsum(weights, 0)
    token = tl.min(tl.where((cumulative > threshold) & (weights > 0), places, 2147483647), 0)
    # A cumulative sum may end below the sum that chose the block, by rounding: then its last token is meant.
    return tl.where(token < 2147483647, token, tl.max(tl.where(weights > 0, places, 0), 0)).to(tl.int64)


@triton.jit
def _drawn_token(
    student_pointer,
    teacher_pointer,
    row,
    student_stride,
    teacher_stride,
    vocabulary_size,
    blend,
    student_log_mass,
    teacher_log_mass,
    log_mass,
    uniform,
    IS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """One token of a row; NO_TOKEN where the row is broken, NOTHING where there is nothing to draw from."""
    # log mu = (1-b) log p + b log q - norm: small, whatever the offsets are.
    between = student_log_mass + blend * (teacher_log_mass - student_log_mass)
    between = tl.where(blend == 0, student_log_mass, tl.where(blend == 1, teacher_log_mass, between))
    norm = log_mass - between
    total = tl.cast(0.0, tl.float64)
    num_blocks = tl.cdiv(vocabulary_size, BLOCK)
    for block in range(0, num_blocks):
        weights = _weights(
            student_pointer,
            teacher_pointer,
            row,
            student_stride,
            teacher_stride,
            vocabulary_size,
            block,
            blend,
            student_log_mass,
            teacher_log_mass,
            norm,
            IS_RESIDUAL,
            BLOCK,
            IS_DOUBLE,
        )
        total += tl.sum(weights, 0)
    threshold = _below_one(uniform) * total
    reached, inside = tl.cast(0.0, tl.float64), tl.cast(0.0, tl.float64)
    block = -1
    # The same sums in the same order as above, so that the last of them exceeds the threshold.
    while (reached + inside <= threshold) & (block < num_blocks - 1):
        reached += inside
        block += 1
        weights = _weights(
            student_pointer,
            teacher_pointer,
            row,
            student_stride,
            teacher_stride,
            vocabulary_size,
            block,
            blend,
            student_log_mass,
            teacher_log_mass,
            norm,
            IS_RESIDUAL,
            BLOCK,
            IS_DOUBLE,
        )
        inside = tl.sum(weights, 0)
    block = tl.maximum(block, 0)
    weights = _weights(
        student_pointer,
        teacher_pointer,
        row,
        student_stride,
        teacher_stride,
        vocabulary_size,
        block,
        blend,
        student_log_mass,
        teacher_log_mass,
        norm,
        IS_RESIDUAL,
        BLOCK,
        IS_DOUBLE,
    )
    token = _place_of(weights, threshold - reached, block * BLOCK)
    token = tl.where(total > 0, token, _NOTHING)
    return tl.where((log_mass == log_mass) & (total == total), token, _NO_TOKEN)  # no NaN equals itself


@triton.jit
def _draw_blend_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    point_pointer,
    uniforms_pointer,
    tokens_pointer,
    IS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """A token of a row whose point is known."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    token = _drawn_token(
        student_pointer,
        teacher_pointer,
        row,
        student_stride,
        teacher_stride,
        vocabulary_size,
        tl.load(point_pointer + row),
        tl.load(point_pointer + 2 * num_rows + row),
        tl.load(point_pointer + 3 * num_rows + row),
        tl.load(point_pointer + 4 * num_rows + row),
        tl.load(uniforms_pointer + row),
        IS_RESIDUAL,
        BLOCK,
        IS_DOUBLE,
    )
    tl.store(tokens_pointer + row, token)


@triton.jit
def _judge_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    radius_pointer,
    drafts_pointer,
    keeps_pointer,
    point_pointer,
    kept_pointer,
    replacements_pointer,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The point of a row, whether its draft stays, and what stands there otherwise."""
    row = tl.program_id(0)
    radius = tl.load(radius_pointer + row)
    blend, kl, student_log_mass, teacher_log_mass, log_mass = _solved(
        student_pointer, teacher_pointer, row, student_stride, teacher_stride, vocabulary_size, radius, BLOCK, IS_DOUBLE
    )
    num_rows = tl.num_programs(0)
    _store_point(point_pointer, row, num_rows, blend, kl, student_log_mass, teacher_log_mass, log_mass)
    draft = tl.load(drafts_pointer + row)
    student = tl.load(student_pointer + row.to(tl.int64) * student_stride + draft).to(tl.float64)
    teacher = tl.load(teacher_pointer + row.to(tl.int64) * teacher_stride + draft).to(tl.float64)
    log_mu = tl.where(blend == 1, 0.0, (1.0 - blend) * student) + tl.where(blend == 0, 0.0, blend * teacher)
    keep_prob = tl.exp((log_mu - log_mass) - (student - student_log_mass))
    keep = tl.load(keeps_pointer + row)
    is_kept = keep < keep_prob  # False for a NaN
    token = draft
    if not is_kept:
        # Given a refusal u is uniform on [mu/p, 1), and draws the replacement once it is rescaled.
        token = _drawn_token(
            student_pointer,
            teacher_pointer,
            row,
            student_stride,
            teacher_stride,
            vocabulary_size,
            blend,
            student_log_mass,
            teacher_log_mass,
            log_mass,
            (keep - keep_prob) / (1.0 - keep_prob),
            True,
            BLOCK,
            IS_DOUBLE,
        )
        # Two equal distributions may differ in their last bit, and leave nothing to draw from: the draft was right.
        token = tl.where(token == _NOTHING, draft, token)
    tl.store(kept_pointer + row, is_kept.to(tl.int8))
    tl.store(replacements_pointer + row, token)


@triton.jit
def _block_sums_kernel(pointer, stride, vocabulary_size, sums_pointer, BLOCK: tl.constexpr, IS_DOUBLE: tl.constexpr):
    """Peak of a block, and its mass relative to that."""
    row, block = tl.program_id(0), tl.program_id(1)
    place = sums_pointer + row * tl.num_programs(1) + block
    values = _load(pointer, row, stride, block * BLOCK + tl.arange(0, BLOCK), vocabulary_size, IS_DOUBLE)
    peak = tl.maximum(tl.max(values, 0), LOWEST_PEAK)
    tl.store(place, peak.to(tl.float64))
    mass = tl.sum(tl.exp(values - peak).to(tl.float64), 0)
    tl.store(place + tl.num_programs(0) * tl.num_programs(1), mass)


@triton.jit
def _draw_kernel(
    pointer,
    stride,
    vocabulary_size,
    sums_pointer,
    uniforms_pointer,
    tokens_pointer,
    num_blocks,
    MAX_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """A token of a row from the masses of its blocks, and a cumulative sum of one of them."""
    row = tl.program_id(0)
    blocks = tl.arange(0, MAX_BLOCKS)
    place = sums_pointer + row * num_blocks + blocks
    peaks = tl.load(place, mask=blocks < num_blocks, other=LOWEST_PEAK)
    masses = tl.load(place + tl.num_programs(0) * num_blocks, mask=blocks < num_blocks, other=0.0)
    masses *= tl.exp(peaks - tl.max(peaks, 0))
    cumulative = tl.cumsum(masses, 0)
    total = tl.sum(tl.where(blocks == num_blocks - 1, cumulative, 0.0), 0)
    threshold = _below_one(tl.load(uniforms_pointer + row)) * total
    last = tl.max(tl.where(masses > 0, blocks, 0), 0)
    block = tl.min(tl.where((cumulative > threshold) & (masses > 0), blocks, last), 0)
    is_chosen = blocks == block
    peak = tl.sum(tl.where(is_chosen, peaks, 0.0), 0)
    mass = tl.sum(tl.where(is_chosen, masses, 0.0), 0)
    before = tl.sum(tl.where(is_chosen, cumulative, 0.0), 0) - mass
    places = block * BLOCK + tl.arange(0, BLOCK)
    values = _load(pointer, row, stride, places, vocabulary_size, IS_DOUBLE)
    weights = tl.exp(values - _narrowed(peak, IS_DOUBLE)).to(tl.float64)
    # Relative to the block's own peak, as its mass was.
    share = tl.exp(peak - tl.max(peaks, 0))
    token = _place_of(weights, (threshold - before) / share, block * BLOCK)
    tl.store(tokens_pointer + row, tl.where(total > 0, token, _NO_TOKEN))
