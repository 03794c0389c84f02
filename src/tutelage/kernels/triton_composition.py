"""One program per row composes mu, judges a draft or draws a token: `kernels.composition` on CUDA.

A program reads its row for both log masses, once more for the norm of the tilted part and for what the teacher's top K
leaves out, and once for KL(mu || p); the row is in the device's cache by then. Entries are computed in float32 (float64
for float64 logits), whatever is summed over a row in float64.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import triton
import triton.language as tl

from tutelage.kernels.triton_draws import (
    INTERLEAVED,
    TILTED,
    _composed,
    _drawn_token,
    _judged_draft,
    _log_probs,
    _log_tilted,
)
from tutelage.kernels.triton_rows import LOWEST_PEAK, _load_block, _row_of, _whole, _with_block

# What is asked of a row beside its numbers.
NOTHING_ELSE, A_TOKEN, A_VERDICT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _read_masses(student_row, teacher_row, vocabulary_size, BLOCK: tl.constexpr, IS_DOUBLE: tl.constexpr):
    """Both log masses, NaN where there is none; the teacher's largest logit, and the first token that has it."""
    zero = tl.cast(0.0, tl.float64)
    student_peak, student_mass, teacher_peak, teacher_mass = zero + LOWEST_PEAK, zero, zero + LOWEST_PEAK, zero
    certain = tl.cast(0, tl.int32)
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        student = _load_block(student_row, places, vocabulary_size, IS_DOUBLE)
        teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
        student_peak, student_mass = _with_block(student_peak, student_mass, student, IS_DOUBLE)
        highest = tl.max(teacher, 0)
        its_place = tl.min(tl.where(teacher == highest, places, 2147483647), 0)
        certain = tl.where(highest.to(tl.float64) > teacher_peak, its_place, certain)
        teacher_peak, teacher_mass = _with_block(teacher_peak, teacher_mass, teacher, IS_DOUBLE)
    return _whole(student_mass, student_peak), _whole(teacher_mass, teacher_peak), teacher_peak, certain


@triton.jit
def _read_parts(
    student_row,
    teacher_row,
    vocabulary_size,
    point,
    num_ties,
    FORM: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Norm of the tilted part; p outside the teacher's top K, and the last place at which its least logit is inside."""
    blend, inverse_temperature, _, _, student_log_mass, teacher_offset, least, _, _ = point
    zero = tl.cast(0.0, tl.float64)
    peak, mass, outside = zero + LOWEST_PEAK, zero, zero
    num_seen, last_place = tl.cast(0, tl.int32), tl.cast(-1, tl.int32)
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
        log_p = _log_probs(_load_block(student_row, places, vocabulary_size, IS_DOUBLE), student_log_mass, IS_DOUBLE)
        log_q = _log_probs(teacher, teacher_offset, IS_DOUBLE)
        peak, mass = _with_block(
            peak, mass, _log_tilted(log_p, log_q, blend, inverse_temperature, IS_DOUBLE), IS_DOUBLE
        )
        if FORM == INTERLEAVED:
            is_tie = teacher.to(tl.float64) == least
            is_kept_tie = is_tie & (num_seen + tl.cumsum(is_tie.to(tl.int32), 0) <= num_ties)
            num_seen += tl.sum(is_tie.to(tl.int32), 0)
            last_place = tl.maximum(last_place, tl.max(tl.where(is_kept_tie, places, -1), 0))
            is_kept = (teacher.to(tl.float64) > least) | is_kept_tie
            outside += tl.sum(tl.where(is_kept, 0.0, tl.exp(log_p)).to(tl.float64), 0)
    return _whole(mass, peak), outside, last_place


@triton.jit
def _read_kl(
    student_row,
    teacher_row,
    vocabulary_size,
    point,
    FORM: tl.constexpr,
    IS_CERTAIN: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """KL(mu || p); NaN where either has no mass."""
    kl = tl.cast(0.0, tl.float64)
    for first in range(0, vocabulary_size, BLOCK):
        places = first + tl.arange(0, BLOCK)
        student = _load_block(student_row, places, vocabulary_size, IS_DOUBLE)
        teacher = _load_block(teacher_row, places, vocabulary_size, IS_DOUBLE)
        log_p, log_q = _log_probs(student, point[4], IS_DOUBLE), _log_probs(teacher, point[5], IS_DOUBLE)
        mu, log_ratio, _ = _composed(log_p, log_q, teacher, places, point, FORM, IS_CERTAIN, IS_DOUBLE)
        is_absent = (mu == 0) | (places >= vocabulary_size)
        kl += tl.sum(tl.where(is_absent, 0.0, mu * tl.where(is_absent, 0.0, log_ratio)).to(tl.float64), 0)
    return kl


@triton.jit
def _composition_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    numbers_pointer,
    least_pointer,
    num_ties_pointer,
    drafts_pointer,
    uniforms_pointer,
    sums_pointer,
    places_pointer,
    kept_pointer,
    tokens_pointer,
    FORM: tl.constexpr,
    IS_CERTAIN: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The numbers of a row, and a token from mu, or whether a draft stays and what stands there otherwise."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    student_row, teacher_row = _row_of(student_pointer, student_stride), _row_of(teacher_pointer, teacher_stride)
    zero = tl.cast(0.0, tl.float64)
    blend, inverse = tl.load(numbers_pointer + row), tl.load(numbers_pointer + num_rows + row)
    least, num_ties = tl.load(least_pointer + row), tl.load(num_ties_pointer + row)
    student_log_mass, teacher_log_mass, teacher_peak, certain = _read_masses(
        student_row, teacher_row, vocabulary_size, BLOCK, IS_DOUBLE
    )
    # Divided by a small temperature, only differences from the largest logit keep their digits.
    teacher_offset = tl.where(inverse == 1.0, teacher_log_mass, teacher_peak + (teacher_log_mass - teacher_log_mass))
    norm, tilted_share, last_place = zero, tl.load(numbers_pointer + 2 * num_rows + row), tl.cast(-1, tl.int32)
    point = (blend, inverse, norm, tilted_share, student_log_mass, teacher_offset, least, last_place, certain)
    if HAS_NORM or FORM == INTERLEAVED:
        found, outside, last_place = _read_parts(
            student_row, teacher_row, vocabulary_size, point, num_ties, FORM, BLOCK, IS_DOUBLE
        )
        if HAS_NORM:
            norm = found
        if FORM == INTERLEAVED:
            tilted_share = outside
        point = (blend, inverse, norm, tilted_share, student_log_mass, teacher_offset, least, last_place, certain)
    kl = _read_kl(student_row, teacher_row, vocabulary_size, point, FORM, IS_CERTAIN, BLOCK, IS_DOUBLE)
    # Broken rows: a comparison, or the choice of a certain token, would hide the NaN of a mass.
    tilted_nan = tl.where(blend == 0, 0.0, teacher_log_mass - teacher_log_mass)
    tilted_nan += tl.where(blend == 1, 0.0, student_log_mass - student_log_mass)
    mu_nan = tilted_nan
    if FORM != TILTED:
        mu_nan += student_log_mass - student_log_mass
    mu_nan += norm - norm
    is_sound = mu_nan == 0
    kl += mu_nan + (student_log_mass - student_log_mass)
    tl.store(sums_pointer + row, kl)
    tl.store(sums_pointer + num_rows + row, tilted_share + mu_nan)
    tl.store(sums_pointer + 2 * num_rows + row, norm + mu_nan)
    tl.store(sums_pointer + 3 * num_rows + row, student_log_mass)
    tl.store(sums_pointer + 4 * num_rows + row, teacher_offset)
    tl.store(places_pointer + row, last_place.to(tl.int64))
    tl.store(places_pointer + num_rows + row, certain.to(tl.int64))
    if ASKED == A_TOKEN:
        token = _drawn_token(
            student_row,
            teacher_row,
            vocabulary_size,
            point,
            is_sound,
            tl.load(uniforms_pointer + row),
            FORM,
            IS_CERTAIN,
            False,
            BLOCK,
            IS_DOUBLE,
        )
        tl.store(tokens_pointer + row, token)
    if ASKED == A_VERDICT:
        is_kept, token = _judged_draft(
            student_row,
            teacher_row,
            vocabulary_size,
            point,
            tl.load(drafts_pointer + row),
            tl.load(uniforms_pointer + row),
            is_sound,
            FORM,
            IS_CERTAIN,
            BLOCK,
            IS_DOUBLE,
        )
        tl.store(kept_pointer + row, is_kept.to(tl.int8))
        tl.store(tokens_pointer + row, token)
