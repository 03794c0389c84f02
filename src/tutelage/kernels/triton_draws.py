"""How a program gives probabilities to the tokens of a row and draws one of them, as `kernels.composition` says.

Draws invert the cumulative mass as `distributions.sample` does, so the same uniform number gives the same token on
every device, but for rounding: a read for the mass, a read up to the block where the token lies, and a cumulative sum
of that block alone. Masses are added up in float64.

The numbers of a row travel as a tuple, a point: blend, inverse temperature, norm and share of the tilted part g; what
is subtracted from the logits of student and teacher; and, for what is kept of the student, the smallest teacher logit,
the last place at which it counts, and the token that g is certain of.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from tutelage.distributions import NO_TOKEN
from tutelage.kernels.triton_rows import _INF, LOWEST_PEAK, _load_block, _narrowed, _row_of

# A draw that finds nothing to draw from, told apart from a row that is NaN.
NOTHING = -2

# What mu is made of: the tilted part alone; that beside a share of the student; that beside the student where the
# teacher's top K is.
TILTED, MIXED, INTERLEAVED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

_NO_TOKEN = tl.constexpr(NO_TOKEN)
_NOTHING = tl.constexpr(NOTHING)


@triton.jit
def _path_point(blend, student_log_mass, teacher_log_mass, log_mass):
    """The point of a geometric blend, log mu = (1-b) log p + b log q - norm; the norm is small whatever the offsets."""
    between = student_log_mass + blend * (teacher_log_mass - student_log_mass)
    between = tl.where(blend == 0, student_log_mass, tl.where(blend == 1, teacher_log_mass, between))
    zero = tl.cast(0.0, tl.float64)
    return blend, zero + 1.0, log_mass - between, zero + 1.0, student_log_mass, teacher_log_mass, zero, 0, 0


@triton.jit
def _log_probs(logits, log_mass, IS_DOUBLE: tl.constexpr):
    """Log-probabilities. The mass is subtracted in two halves, as logits may sit around 5000."""
    head = _narrowed(log_mass, IS_DOUBLE)
    return (logits - head) - _narrowed(log_mass - head.to(tl.float64), IS_DOUBLE)


@triton.jit
def _log_tilted(log_p, log_q, blend, inverse_temperature, IS_DOUBLE: tl.constexpr):
    """log (p^(1-b) q^b)^(1/tau). At an end of the path the other side has no say, and 0 * -inf must not be formed."""
    student_share, teacher_share = _narrowed(1.0 - blend, IS_DOUBLE), _narrowed(blend, IS_DOUBLE)
    log_weights = tl.where(student_share == 0, 0.0, log_p * student_share)
    log_weights += tl.where(teacher_share == 0, 0.0, log_q * teacher_share)
    return log_weights * _narrowed(inverse_temperature, IS_DOUBLE)


@triton.jit
def _composed(
    log_p, log_q, teacher, places, point, FORM: tl.constexpr, IS_CERTAIN: tl.constexpr, IS_DOUBLE: tl.constexpr
):
    """mu, log mu/p, and a multiple of (mu - p)+ at some places of a row."""
    blend, inverse_temperature, norm, tilted_share, _, _, least, last_place, certain = point
    if IS_CERTAIN:
        tilted = tl.where(places == certain, 1.0, 0.0).to(log_p.dtype)
        log_gain = tl.where(places == certain, -log_p, -_INF)
    else:
        narrow_norm, teacher_share = _narrowed(norm, IS_DOUBLE), _narrowed(blend, IS_DOUBLE)
        log_tilted = _log_tilted(log_p, log_q, blend, inverse_temperature, IS_DOUBLE) - narrow_norm
        tilted = tl.exp(log_tilted)
        # On the path from the difference of the logarithms, which keeps its digits where mu is close to p.
        log_gain = tl.where(teacher_share == 0, 0.0, (log_q - log_p) * teacher_share) - narrow_norm
        log_gain = tl.where(inverse_temperature == 1.0, log_gain, log_tilted - log_p)
    # g - p = g (1 - p/g) keeps them, too, and holds where p is 0.
    residual = tl.where(log_gain > 0, tilted * _one_minus_exp(log_gain, IS_DOUBLE), 0.0)
    mu, log_ratio = tilted, log_gain
    if FORM != TILTED:
        probs, share = tl.exp(log_p), _narrowed(tilted_share, IS_DOUBLE)
        if FORM == MIXED:  # (mu - p)+ = w (g - p)+
            mu = probs * _narrowed(1.0 - tilted_share, IS_DOUBLE) + tilted * share
        else:
            least_logit = _narrowed(least, IS_DOUBLE)
            is_kept = (teacher > least_logit) | ((teacher == least_logit) & (places <= last_place))
            replaced = tilted * share
            mu = tl.where(is_kept, probs + replaced, replaced)
            residual = tl.where(is_kept, replaced, tl.where(replaced > probs, replaced - probs, 0.0))
        log_ratio = tl.log(mu) - log_p
    return mu, log_ratio, residual


@triton.jit
def _one_minus_exp(z, IS_DOUBLE: tl.constexpr):
    """1 - exp(-z) for z > 0, by its series where the difference would cancel."""
    series = 1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120 - z * (1 / 720 - z * (1 / 5040)))))
    limit = 0.0078125 if IS_DOUBLE else 0.25
    return tl.where(z < limit, z * (1.0 - z * series), 1.0 - tl.exp(-z))


@triton.jit
def _weights(
    student_row,
    teacher_row,
    vocabulary_size,
    block,
    point,
    FORM: tl.constexpr,
    IS_CERTAIN: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """mu, or a multiple of (mu - p)+, of a block, in float64."""
    places = block * BLOCK + tl.arange(0, BLOCK)
    student = _load_block(student_row, places, vocabulary_size, IS_DOUBLE)
    teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
    log_p, log_q = _log_probs(student, point[4], IS_DOUBLE), _log_probs(teacher, point[5], IS_DOUBLE)
    mu, _, residual = _composed(log_p, log_q, teacher, places, point, FORM, IS_CERTAIN, IS_DOUBLE)
    weights = residual if IS_RESIDUAL else mu
    return tl.where(places < vocabulary_size, weights, 0.0).to(tl.float64)


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
    student_row,
    teacher_row,
    vocabulary_size,
    point,
    is_sound,
    uniform,
    FORM: tl.constexpr,
    IS_CERTAIN: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """One token of a row; NO_TOKEN where the row is not sound, NOTHING where there is nothing to draw from."""
    total = tl.cast(0.0, tl.float64)
    num_blocks = tl.cdiv(vocabulary_size, BLOCK)
    for block in range(0, num_blocks):
        weights = _weights(
            student_row, teacher_row, vocabulary_size, block, point, FORM, IS_CERTAIN, IS_RESIDUAL, BLOCK, IS_DOUBLE
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
            student_row, teacher_row, vocabulary_size, block, point, FORM, IS_CERTAIN, IS_RESIDUAL, BLOCK, IS_DOUBLE
        )
        inside = tl.sum(weights, 0)
    block = tl.maximum(block, 0)
    weights = _weights(
        student_row, teacher_row, vocabulary_size, block, point, FORM, IS_CERTAIN, IS_RESIDUAL, BLOCK, IS_DOUBLE
    )
    token = _place_of(weights, threshold - reached, block * BLOCK)
    token = tl.where(total > 0, token, _NOTHING)
    return tl.where(is_sound & (total == total), token, _NO_TOKEN)  # no NaN equals itself


@triton.jit
def _judged_draft(
    student_row,
    teacher_row,
    vocabulary_size,
    point,
    draft,
    keep,
    is_sound,
    FORM: tl.constexpr,
    IS_CERTAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Whether the draft of a row stays, and what stands there otherwise."""
    student, teacher = tl.load(student_row + draft).to(tl.float64), tl.load(teacher_row + draft).to(tl.float64)
    log_p, log_q = student - point[4], teacher - point[5]
    _, log_ratio, _ = _composed(log_p, log_q, teacher, draft, point, FORM, IS_CERTAIN, True)
    keep_prob = tl.exp(log_ratio)
    is_kept = is_sound & (keep < keep_prob)  # False for a NaN
    token = draft
    if not is_kept:
        # Given a refusal u is uniform on [mu/p, 1), and draws the replacement once it is rescaled.
        token = _drawn_token(
            student_row,
            teacher_row,
            vocabulary_size,
            point,
            is_sound & (keep_prob == keep_prob),
            (keep - keep_prob) / (1.0 - keep_prob),
            FORM,
            IS_CERTAIN,
            True,
            BLOCK,
            IS_DOUBLE,
        )
        # Two equal distributions may differ in their last bit, and leave nothing to draw from: the draft was right.
        token = tl.where(token == _NOTHING, draft, token)
    return is_kept, token


# ------------------------------------------------------------------------------------------- rows whose point is known


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
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """A token from a geometric blend whose point is known."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    log_mass = tl.load(point_pointer + 4 * num_rows + row)
    point = _path_point(
        tl.load(point_pointer + row),
        tl.load(point_pointer + 2 * num_rows + row),
        tl.load(point_pointer + 3 * num_rows + row),
        log_mass,
    )
    token = _drawn_token(
        _row_of(student_pointer, student_stride),
        _row_of(teacher_pointer, teacher_stride),
        vocabulary_size,
        point,
        log_mass == log_mass,
        tl.load(uniforms_pointer + row),
        TILTED,
        False,
        False,
        BLOCK,
        IS_DOUBLE,
    )
    tl.store(tokens_pointer + row, token)


# ------------------------------------------------------------------------------------- one row of weights, and no other


@triton.jit
def _block_sums_kernel(pointer, stride, vocabulary_size, sums_pointer, BLOCK: tl.constexpr, IS_DOUBLE: tl.constexpr):
    """Peak of a block, and its mass relative to that."""
    row, block = tl.program_id(0), tl.program_id(1)
    place = sums_pointer + row * tl.num_programs(1) + block
    places = block * BLOCK + tl.arange(0, BLOCK)
    values = _load_block(_row_of(pointer, stride), places, vocabulary_size, IS_DOUBLE)
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
    values = _load_block(_row_of(pointer, stride), places, vocabulary_size, IS_DOUBLE)
    weights = tl.exp(values - _narrowed(peak, IS_DOUBLE)).to(tl.float64)
    # Relative to the block's own peak, as its mass was.
    share = tl.exp(peak - tl.max(peaks, 0))
    token = _place_of(weights, (threshold - before) / share, block * BLOCK)
    tl.store(tokens_pointer + row, tl.where(total > 0, token, _NO_TOKEN))
