"""The sampler on CUDA: three Triton kernels that each read the rows once, split over many programs.

A program holds one block of one row. It leaves a few numbers per block, which torch adds up; no [B, V] tensor is made
and the host does not wait for the device. The kernels compute in float32 (float64 for float64 logits). Two devices keep
the digits that float32 would lose at small radii: r = t - s carries its rounding error along, and

    spent(b) = S exp(-A) - (exp(-A) - 1 + A),   S = E_p[phi(x)],   phi(x) = x e^x - e^x + 1,   x = b (r - c)

adds up positive terms only, with A = log E_p[e^x] near 0 when c is close to E_p[r]; its relative error is that of A
itself. (From KL(mu || p) = E_p[mu/p log mu/p] by multiplying out.)

Axis letters: B rows, V vocabulary, P blocks of a row, G blends tried in one read. p is the student, q the teacher.
"""

# Triton is optional, so its types may be absent; and a kernel is a language of its own, not typed Python.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.distributions import NO_TOKEN
from tutelage.kernels.noise import LANES, TILE, keys
from tutelage.kernels.reference import PURPOSE_BLEND, PURPOSE_RESIDUAL, draw_terms, work_dtype
from tutelage.kernels.solve import BlendPoint, Ends, solve, whole_and_price

__all__ = ["blend_point", "draw_blend", "draw_residual"]

# Blends tried in one read: the row is in registers, so that a blend more costs arithmetic but no memory traffic.
NUM_BLENDS = 8

# Reads after the first. Two settle ordinary rows; a program whose row is settled returns at once, and the rest is there
# for logits that spread over hundreds of nats. The host never waits, so that the whole can be captured in a CUDA graph.
NUM_ROUNDS = 8

MAX_BLOCK = 4096
NUM_WARPS = 8

# Below this log mass the positive sum is the more precise one; above it the plain formula loses nothing.
MAX_SUMMED_LOG_MASS = 1.0

NUM_END_FIELDS = 11
NUM_TILT_FIELDS = 5


def blend_point(student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor) -> BlendPoint:
    """Where the trust region of each row ends; see `tutelage.kernels.blend_point`, which checks the arguments."""
    reader = _TritonReader(student_logits_BV, teacher_logits_BV)
    return solve(reader, radius_B, reader.dtype, NUM_ROUNDS)


def draw_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor) -> Tensor:
    """One token per row from mu, by Gumbel-max; see `tutelage.kernels.draw_blend`."""
    return _draw(student_logits_BV, teacher_logits_BV, point, uniforms_B, PURPOSE_BLEND)


def draw_residual(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor
) -> Tensor:
    """One token per row from (mu - p)+ normalised, by Gumbel-max; see `tutelage.kernels.draw_residual`."""
    return _draw(student_logits_BV, teacher_logits_BV, point, uniforms_B, PURPOSE_RESIDUAL)


class _TritonReader:
    """Rows [B, V] that `solve` reads through kernels."""

    num_blends = NUM_BLENDS
    can_look = False

    def __init__(self, student_BV: Tensor, teacher_BV: Tensor) -> None:
        self.student_BV, self.teacher_BV = _contiguous_rows(student_BV), _contiguous_rows(teacher_BV)
        self.dtype = work_dtype(student_BV, teacher_BV)
        self.block = _block(student_BV)
        self.num_blocks = triton.cdiv(student_BV.shape[1], self.block)

    def ends(self) -> Ends:
        """Both ends of the path."""
        sums_FBP = self._empty(NUM_END_FIELDS, len(self.student_BV), self.num_blocks)
        self._launch(_ends_kernel, sums_FBP)
        student_peak, student_mass, student_lost, mean, square, cube, *teacher = sums_FBP.double()
        teacher_peak, teacher_mass, teacher_lost, end_mean, end_square = teacher
        log_mass_B, mean_B, variance_B, third_B = _merged(student_peak, student_mass, mean, square, cube)
        end_log_mass_B, end_mean_B, end_variance_B, _ = _merged(
            teacher_peak, teacher_mass, end_mean, end_square, torch.zeros_like(cube)
        )
        student_lost_B = (student_peak + student_lost.log()).logsumexp(1)
        teacher_lost_B = (teacher_peak + teacher_lost.log()).logsumexp(1)
        student_whole_B, price_B = whole_and_price(log_mass_B, student_lost_B)
        teacher_whole_B, _ = whole_and_price(end_log_mass_B, teacher_lost_B)
        return Ends(
            student_whole_B,
            teacher_whole_B,
            price_B,
            teacher_lost_B > -math.inf,
            torch.stack([log_mass_B, end_log_mass_B]),
            torch.stack([mean_B, end_mean_B]),
            torch.stack([variance_B, end_variance_B]),
            third_B,
        )

    def tilts(self, ends: Ends, blend_BG: Tensor, is_open_B: Tensor) -> Tensor:
        """L, L', L'' and spent of the open rows."""
        num_rows, num_blends = blend_BG.shape
        # What the kernel subtracts is known exactly here, and given back in float64.
        origin_B, centre_B = ends.log_mass_2B[0].to(self.dtype), ends.mean_2B[0].to(self.dtype)
        sums_FBGP = self._empty(NUM_TILT_FIELDS, num_rows, num_blends, self.num_blocks)
        student_mass_BP = self._empty(num_rows, self.num_blocks)
        self._launch(
            _tilts_kernel,
            sums_FBGP,
            student_mass_BP,
            blend_BG.to(self.dtype).contiguous(),
            origin_B,
            centre_B,
            is_open_B.to(torch.int8),
            NUM_BLENDS=num_blends,
        )
        peak, mass, mean, square, phi = sums_FBGP.double()
        log_mass_BG, distance_BG, variance_BG, _ = _merged(peak, mass, mean, square, torch.zeros_like(peak))
        student_mass_B1 = student_mass_BP.double().sum(1, keepdim=True)
        gain_BG = log_mass_BG - student_mass_B1.log()  # A
        summed_BG = phi.sum(2) / student_mass_B1 * (-gain_BG).exp() - (torch.expm1(-gain_BG) + gain_BG)
        spent_BG = torch.where(
            gain_BG.abs() < MAX_SUMMED_LOG_MASS, summed_BG, blend_BG * distance_BG - gain_BG
        ).clamp_min(0)
        centre_B1 = centre_B.double()[:, None]
        # Given back relative to the L(0) that the first read found, of which student_mass is the second opinion.
        log_mass_BG = ends.log_mass_2B[0][:, None] + gain_BG + blend_BG * centre_B1
        return torch.stack([log_mass_BG, distance_BG + centre_B1, variance_BG, spent_BG])

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.student_BV.device)

    def _launch(self, kernel: Any, *arguments: Tensor, **constants: int) -> None:
        num_rows, vocabulary_size = self.student_BV.shape
        if not num_rows:
            return
        with _on(self.student_BV):
            kernel[(num_rows, self.num_blocks)](
                self.student_BV,
                self.teacher_BV,
                self.student_BV.stride(0),
                self.teacher_BV.stride(0),
                vocabulary_size,
                *arguments,
                BLOCK=self.block,
                IS_DOUBLE=self.dtype == torch.float64,
                num_warps=NUM_WARPS,
                **constants,
            )


def _merged(
    peak: Tensor, mass: Tensor, mean: Tensor, square: Tensor, cube: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log mass, mean, variance and third cumulant over the last axis, from central moments of its blocks."""
    whole_peak = peak.amax(-1, keepdim=True)
    weight = mass * (peak - whole_peak).exp()
    total = weight.sum(-1, keepdim=True)
    share = weight / total
    whole_mean = (share * mean).sum(-1, keepdim=True)
    away = mean - whole_mean
    variance = (share * (square + away.square())).sum(-1)
    third = (share * (cube + away * (3 * square + away.square()))).sum(-1)
    return (total.log() + whole_peak).squeeze(-1), whole_mean.squeeze(-1), variance, third


def _draw(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor, purpose: int
) -> Tensor:
    """One read: the best score and its token for every block, then the best block."""
    student_BV, teacher_BV = _contiguous_rows(student_logits_BV), _contiguous_rows(teacher_logits_BV)
    num_rows, vocabulary_size = student_BV.shape
    dtype, block = work_dtype(student_BV, teacher_BV), _block(student_BV)
    num_blocks = triton.cdiv(vocabulary_size, block)
    score_BP = torch.empty((num_rows, num_blocks), dtype=dtype, device=student_BV.device)
    token_BP = torch.empty((num_rows, num_blocks), dtype=torch.int64, device=student_BV.device)
    if num_rows:
        with _on(student_BV):
            _draw_kernel[(num_rows, num_blocks)](
                student_BV,
                teacher_BV,
                student_BV.stride(0),
                teacher_BV.stride(0),
                vocabulary_size,
                score_BP,
                token_BP,
                torch.stack(list(draw_terms(point, dtype))),
                keys(uniforms_B),
                PURPOSE=purpose,
                IS_RESIDUAL=purpose == PURPOSE_RESIDUAL,
                LANES=LANES,
                BLOCK=block,
                IS_DOUBLE=dtype == torch.float64,
                num_warps=NUM_WARPS,
            )
    best_B, place_B = score_BP.max(1)
    tokens_B = token_BP.gather(1, place_B[:, None]).squeeze(1)
    return tokens_B.masked_fill_((best_B == -math.inf) | point.blend_log_mass_B.isnan(), NO_TOKEN)


def _contiguous_rows(logits_BV: Tensor) -> Tensor:
    return logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()


def _block(logits_BV: Tensor) -> int:
    """Entries of a row per program: a power of two, whole tiles of noise."""
    return int(min(MAX_BLOCK, max(TILE, triton.next_power_of_2(logits_BV.shape[1]))))


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@triton.jit
def _load(pointer, row, stride, places, vocabulary_size, IS_DOUBLE: tl.constexpr):
    values = tl.load(pointer + row.to(tl.int64) * stride + places, mask=places < vocabulary_size, other=-float("inf"))
    return values.to(tl.float64) if IS_DOUBLE else values.to(tl.float32)


@triton.jit
def _log_ratio(student, teacher, is_shared):
    """t - s and what the rounding of it lost (Knuth's TwoSum); 0 where a side forbids the token."""
    student = tl.where(is_shared, student, 0.0)
    teacher = tl.where(is_shared, teacher, 0.0)
    ratio = teacher - student
    negated = ratio - teacher
    return ratio, (teacher - (ratio - negated)) - (student + negated)


@triton.jit
def _ends_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    sums_pointer,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """Peak, mass, lost mass and central moments of r, under the student's and under the teacher's weights."""
    row, block = tl.program_id(0), tl.program_id(1)
    place = row * tl.num_programs(1) + block
    field_stride = tl.num_programs(0) * tl.num_programs(1)
    places = block * BLOCK + tl.arange(0, BLOCK)
    student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
    teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
    is_shared = (student > -float("inf")) & (teacher > -float("inf"))
    ratio, rest = _log_ratio(student, teacher, is_shared)
    for side in tl.static_range(2):
        values = student if side == 0 else teacher
        # Finite even for a block without any possible token: -inf minus -inf would be NaN.
        peak = tl.maximum(tl.max(values, 0), -1e30)
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
        base = sums_pointer + place + side * 6 * field_stride
        tl.store(base, peak)
        tl.store(base + field_stride, mass)
        tl.store(base + 2 * field_stride, lost)
        tl.store(base + 3 * field_stride, mean + correction)
        tl.store(base + 4 * field_stride, square)
        if side == 0:
            tl.store(base + 5 * field_stride, tl.sum(shared * away * away * away, 0) / safe_mass)


@triton.jit
def _tilts_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    sums_pointer,
    student_mass_pointer,
    blend_pointer,
    origin_pointer,
    centre_pointer,
    is_open_pointer,
    NUM_BLENDS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """For every blend: peak, mass, mean and variance of r - c, and Σ p phi(b (r - c)); Σ p once."""
    row, block = tl.program_id(0), tl.program_id(1)
    if tl.load(is_open_pointer + row) == 0:
        return
    num_rows, num_blocks = tl.num_programs(0), tl.num_programs(1)
    field_stride = num_rows * NUM_BLENDS * num_blocks
    places = block * BLOCK + tl.arange(0, BLOCK)
    student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
    teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
    is_shared = (student > -float("inf")) & (teacher > -float("inf"))
    ratio, rest = _log_ratio(student, teacher, is_shared)
    away = (ratio - tl.load(centre_pointer + row)) + rest
    log_student = tl.where(is_shared, student - tl.load(origin_pointer + row), -float("inf"))
    probs = tl.exp(log_student)
    tl.store(student_mass_pointer + row * num_blocks + block, tl.sum(probs, 0))
    for number in tl.static_range(NUM_BLENDS):
        x = away * tl.load(blend_pointer + row * NUM_BLENDS + number)
        exponents = log_student + x
        peak = tl.maximum(tl.max(exponents, 0), -1e30)
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
        base = sums_pointer + (row * NUM_BLENDS + number) * num_blocks + block
        tl.store(base, peak)
        tl.store(base + field_stride, mass)
        tl.store(base + 2 * field_stride, mean)
        tl.store(base + 3 * field_stride, square)
        tl.store(base + 4 * field_stride, phi)


@triton.jit
def _draw_kernel(
    student_pointer,
    teacher_pointer,
    student_stride,
    teacher_stride,
    vocabulary_size,
    score_pointer,
    token_pointer,
    terms_pointer,
    keys_pointer,
    PURPOSE: tl.constexpr,
    IS_RESIDUAL: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    """The largest log weight minus log exponential of a block, and its token; noise as in `noise.exponentials`."""
    row, block = tl.program_id(0), tl.program_id(1)
    num_rows, num_blocks = tl.num_programs(0), tl.num_programs(1)
    terms = terms_pointer + row
    student_head = tl.load(terms)
    student_rest = tl.load(terms + num_rows)
    teacher_head = tl.load(terms + 2 * num_rows)
    teacher_rest = tl.load(terms + 3 * num_rows)
    student_share = tl.load(terms + 4 * num_rows)
    teacher_share = tl.load(terms + 5 * num_rows)
    norm = tl.load(terms + 6 * num_rows)

    counters = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    zeros = tl.zeros_like(counters)
    words = tl.philox(tl.load(keys_pointer + row), counters, zeros + PURPOSE, zeros, zeros)
    first_places = counters // LANES * (4 * LANES) + counters % LANES
    best = -float("inf")
    token = 0
    for number in tl.static_range(4):
        places = first_places + number * LANES
        student = _load(student_pointer, row, student_stride, places, vocabulary_size, IS_DOUBLE)
        teacher = _load(teacher_pointer, row, teacher_stride, places, vocabulary_size, IS_DOUBLE)
        student = (student - student_head) - student_rest
        teacher = (teacher - teacher_head) - teacher_rest
        student_part = tl.where(student_share == 0, 0.0, student * student_share)
        weight = tl.where(teacher_share == 0, 0.0, teacher * teacher_share) + student_part
        if IS_RESIDUAL:
            gain = (teacher - student) * teacher_share - norm
            weight = tl.where(gain > 0, weight + tl.log(_one_minus_exp(gain)), -float("inf"))
        unit = words[number].to(tl.float64) if IS_DOUBLE else words[number].to(tl.float32)
        unit = tl.minimum((unit + 0.5) * 2.3283064365386963e-10, 0.999999940395355224609375)  # 2^-32, 1 - 2^-24
        score = weight - tl.log(_minus_log_one_minus(unit))
        score = tl.where(places < vocabulary_size, score, -float("inf"))
        here = tl.max(score, 0)
        # Of equal scores the first token wins.
        here_token = tl.min(tl.where(score == here, places, 2147483647), 0)
        is_better = (here > best) | ((here == best) & (here_token < token))
        token = tl.where(is_better, here_token, token)
        best = tl.where(is_better, here, best)
    tl.store(score_pointer + row * num_blocks + block, best)
    tl.store(token_pointer + row * num_blocks + block, token)


@triton.jit
def _one_minus_exp(z):
    """1 - exp(-z) for z > 0, by its series where the difference would cancel."""
    series = 1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120 - z * (1 / 720 - z * (1 / 5040)))))
    return tl.where(z < 0.25, z * (1.0 - z * series), 1.0 - tl.exp(-z))


@triton.jit
def _minus_log_one_minus(u):
    """-log(1 - u) for 0 < u < 1, by its series where 1 - u would round."""
    series = 1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7 + u * (1 / 8))))))
    return tl.where(u < 0.0625, u + u * u * series, -tl.log(1.0 - u))
