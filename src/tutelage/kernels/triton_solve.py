"""The trust-region solve in one program per row, as `kernels.solve` explains it.

A program reads its row once for both ends of the path, and then for two blends at a time until the radius is met; the
row is in the device's cache by then. Entries of a row are computed in float32 (float64 for float64 logits), whatever is
summed over a row in float64. Two devices keep the digits that float32 would lose at small radii: r = t - s carries its
rounding error along, and

    spent(b) = S exp(-A) - (exp(-A) - 1 + A),   S = E_p[phi(x)],   phi(x) = x e^x - e^x + 1,   x = b (r - c)

adds up positive terms only, with A = log E_p[e^x] near 0 when c is close to E_p[r]; its relative error is that of A
itself. (From KL(mu || p) = E_p[mu/p log mu/p] by multiplying out.)
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from tutelage.kernels.solve import ACCEPT_WITHIN, END_TOLERANCE, EXHAUSTED_WITHIN, MAX_ROUNDS
from tutelage.kernels.triton_draws import TILTED, _judged_draft, _path_point
from tutelage.kernels.triton_rows import _INF, LOWEST_PEAK, _load_block, _narrowed, _row_of, _scaled, _whole

# Below this log mass the positive sum is the more precise one; above it the plain formula loses nothing.
MAX_SUMMED_LOG_MASS = tl.constexpr(1.0)

_ACCEPT_WITHIN = tl.constexpr(ACCEPT_WITHIN)
_END_TOLERANCE = tl.constexpr(END_TOLERANCE)
_EXHAUSTED_WITHIN = tl.constexpr(EXHAUSTED_WITHIN)
_MAX_ROUNDS = tl.constexpr(MAX_ROUNDS)


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
    student_row,
    teacher_row,
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
        student = _load_block(student_row, places, vocabulary_size, IS_DOUBLE)
        teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
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
def _read_tilts(
    student_row,
    teacher_row,
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
        student = _load_block(student_row, places, vocabulary_size, IS_DOUBLE)
        teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
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
    student_row,
    teacher_row,
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
    ) = _read_ends(student_row, teacher_row, vocabulary_size, BLOCK, IS_DOUBLE)
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
            student_row,
            teacher_row,
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
    drafts_pointer,
    keeps_pointer,
    point_pointer,
    kept_pointer,
    replacements_pointer,
    HAS_DRAFT: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The point of a row; and with a draft, whether it stays, and what stands there otherwise."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    student_row, teacher_row = _row_of(student_pointer, student_stride), _row_of(teacher_pointer, teacher_stride)
    radius = tl.load(radius_pointer + row)
    blend, kl, student_log_mass, teacher_log_mass, log_mass = _solved(
        student_row, teacher_row, vocabulary_size, radius, BLOCK, IS_DOUBLE
    )
    _store_point(point_pointer, row, num_rows, blend, kl, student_log_mass, teacher_log_mass, log_mass)
    if HAS_DRAFT:
        is_kept, token = _judged_draft(
            student_row,
            teacher_row,
            vocabulary_size,
            _path_point(blend, student_log_mass, teacher_log_mass, log_mass),
            tl.load(drafts_pointer + row),
            tl.load(keeps_pointer + row),
            log_mass == log_mass,
            TILTED,
            False,
            BLOCK,
            IS_DOUBLE,
        )
        tl.store(kept_pointer + row, is_kept.to(tl.int8))
        tl.store(replacements_pointer + row, token)
