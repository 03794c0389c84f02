"""The sampler in plain torch, for any device: rows in groups, vocabularies in pieces, so that no [B, V] tensor is made.

The sums run in float64 (float32 where a device has none), which costs twice a float32 exponential and makes the plain
formulas exact enough for the smallest radius. Temporaries hold `PIECE_ENTRIES_*` entries, whatever the batch.

Axis letters: B rows, V vocabulary, N entries of a piece. p is the student, q the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tutelage.distributions import geometric_blend, normalise, sample, wide_dtype, widest_dtype
from tutelage.kernels.composition import Composition, CompositionSums
from tutelage.kernels.solve import BlendPoint, Ends, solve, whole_and_price

__all__ = ["blend_point", "draw", "draw_blend", "fits_a_piece", "read_composition", "row_groups"]

# Entries that are worked on at a time. On a CPU fewer would sit closer to the core, but the calls would cost more than
# that saves (measured from 2^14 to 2^18); elsewhere enough to keep the device busy.
PIECE_ENTRIES_CPU = 2**18
PIECE_ENTRIES_ELSEWHERE = 2**23

LOWEST_PEAK = -1e30
"""Stands for the peak of a piece without any possible token: finite, so that no weight relative to it is NaN."""

IMPOSSIBLE = 2 * LOWEST_PEAK
"""Stands for a logit of -inf: still without weight beside the lowest peak.

Tokens that both sides forbid (padding, merged stop ids) then have a ratio of 0, and need no mask."""


def blend_point(student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor) -> BlendPoint:
    """Where the trust region of each row ends; see `tutelage.kernels.blend_point`, which checks the arguments."""
    reader = _TorchReader(student_logits_BV, teacher_logits_BV)
    return solve(reader, radius_B, wide_dtype(student_logits_BV, teacher_logits_BV))


def draw_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor) -> Tensor:
    """One token per row from mu; see `tutelage.kernels.draw_blend`."""
    return torch.cat(
        [
            sample(
                geometric_blend(
                    normalise(student_logits_BV[rows]), normalise(teacher_logits_BV[rows]), point.blend_B[rows]
                ),
                uniforms_B[rows],
            )
            for rows in _groups_of(student_logits_BV)
        ]
    )


def read_composition(composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> CompositionSums:
    """The numbers of each row; see `tutelage.kernels.read_composition`."""
    parts = [
        composition.of_rows(rows).sums(student_BV, teacher_BV, composition.of_rows(rows).rows(student_BV, teacher_BV))
        for rows, student_BV, teacher_BV in _groups_of_two(student_logits_BV, teacher_logits_BV)
    ]
    return CompositionSums(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def draw(log_weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token per row from weights; see `tutelage.kernels.draw`."""
    return sample(log_weights_BV, uniforms_B)


class _TorchReader:
    """Rows [B, V] that `solve` reads piece by piece."""

    def __init__(self, student_BV: Tensor, teacher_BV: Tensor) -> None:
        self.student_BV, self.teacher_BV = student_BV, teacher_BV
        self.wide = widest_dtype(student_BV.device)
        self.has_holes = False

    def ends(self) -> Ends:
        """Both ends of the path."""
        parts = [self._ends_of(rows) for rows in _groups_of(self.student_BV)]
        return Ends(*(torch.cat(fields, -1) for fields in zip(*parts, strict=True)))

    def tilts(self, ends: Ends, blend_B: Tensor, is_open_B: Tensor) -> Tensor:
        """L, L', L'' and spent of the open rows; zeros for the others."""
        known_3B = torch.stack([blend_B, ends.mean_2B[0], ends.log_mass_2B[0]])
        if bool(is_open_B.all()):
            groups = _groups_of(self.student_BV)
            return torch.cat([self._tilts_of(rows, known_3B[:, rows]) for rows in groups], 1)
        tilts_4B = known_3B.new_zeros(4, len(is_open_B))
        open_rows = is_open_B.nonzero().squeeze(1)
        for group in row_groups(len(open_rows), self.student_BV.shape[1], self.student_BV.device):
            rows = open_rows[group]
            tilts_4B[:, rows] = self._tilts_of(rows, known_3B[:, rows])
        return tilts_4B

    def _ends_of(self, rows: slice) -> Ends:
        student, teacher = _Sum(4), _Sum(3)
        student_lost, teacher_lost = _Sum(1), _Sum(1)
        origin_B1: Tensor | None = None
        for piece in _pieces(self.student_BV):
            student_BN, teacher_BN = self._piece(rows, piece)
            student_peak_B1, teacher_peak_B1 = _peak(student_BN), _peak(teacher_BN)
            if origin_B1 is None:  # centres r by what the first piece suggests, to keep the digits of its variance
                origin_B1 = teacher_peak_B1 - student_peak_B1
                origin_B1.masked_fill_(origin_B1.abs() > -LOWEST_PEAK / 2, 0)  # a piece that a side forbids altogether
            log_ratio_BN = (teacher_BN - student_BN).sub_(origin_B1)
            student_weights_BN = student_BN.sub_(student_peak_B1).exp_()
            teacher_weights_BN = teacher_BN.sub_(teacher_peak_B1).exp_()
            # A token that one side forbids makes r huge, and with it the mean.
            if not self.has_holes and log_ratio_BN.numel():
                lowest, highest = log_ratio_BN.aminmax()
                self.has_holes = not bool((lowest > LOWEST_PEAK) & (highest < -LOWEST_PEAK))
            if self.has_holes:
                is_hole_BN = _is_hole(log_ratio_BN)
                # What a broken row holds must stay visible in its mass.
                is_hole_BN &= ~(student_weights_BN.isnan() | teacher_weights_BN.isnan())
                log_ratio_BN.masked_fill_(is_hole_BN, 0)
                student_lost.add(student_peak_B1, student_weights_BN * is_hole_BN)
                teacher_lost.add(teacher_peak_B1, teacher_weights_BN * is_hole_BN)
                student_weights_BN.masked_fill_(is_hole_BN, 0)
                teacher_weights_BN.masked_fill_(is_hole_BN, 0)
            student.add(student_peak_B1, student_weights_BN, log_ratio_BN)
            teacher.add(teacher_peak_B1, teacher_weights_BN, log_ratio_BN)
        assert origin_B1 is not None
        student_log_mass_B, mean_B, square_B, cube_B = student.total()
        teacher_log_mass_B, end_mean_B, end_square_B = teacher.total()
        student_whole_B, teacher_whole_B = student_log_mass_B, teacher_log_mass_B
        price_B, student_misses_B = torch.zeros_like(mean_B), torch.zeros_like(mean_B, dtype=torch.bool)
        if student_lost.sums:
            student_whole_B, price_B = whole_and_price(student_log_mass_B, student_lost.total()[0])
            teacher_lost_B = teacher_lost.total()[0]
            teacher_whole_B, _ = whole_and_price(teacher_log_mass_B, teacher_lost_B)
            student_misses_B = teacher_lost_B > -math.inf
        mean_2B = torch.stack([mean_B, end_mean_B])
        return Ends(
            student_whole_B,
            teacher_whole_B,
            price_B,
            student_misses_B,
            torch.stack([student_log_mass_B, teacher_log_mass_B]),
            mean_2B + origin_B1.squeeze(1),
            (torch.stack([square_B, end_square_B]) - mean_2B.square()).clamp_min_(0),
            cube_B + mean_B * (2 * mean_B.square() - 3 * square_B),
        )

    def _tilts_of(self, rows: Tensor | slice, known_3B: Tensor) -> Tensor:
        """L, L', L'' and spent as [4, B], from blend, centre of r and L(0)."""
        blend_B, centre_B, start_log_mass_B = known_3B
        blend_B1, centre_B1 = blend_B[:, None], centre_B[:, None]
        tilted = _Sum(3)
        for piece in _pieces(self.student_BV):
            student_BN, teacher_BN = self._piece(rows, piece)
            log_ratio_BN = teacher_BN.sub_(student_BN)
            log_weights_BN = student_BN.addcmul_(log_ratio_BN, blend_B1)
            if self.has_holes:
                is_hole_BN = _is_hole(log_ratio_BN)
                log_ratio_BN.masked_fill_(is_hole_BN, 0)
                log_weights_BN.masked_fill_(is_hole_BN, -math.inf)
            peak_B1 = _peak(log_weights_BN)
            tilted.add(peak_B1, log_weights_BN.sub_(peak_B1).exp_(), log_ratio_BN.sub_(centre_B1))
        log_mass_B, distance_B, square_B = tilted.total()
        mean_B = distance_B + centre_B
        variance_B = (square_B - distance_B.square()).clamp_min_(0)
        spent_B = (blend_B * mean_B - (log_mass_B - start_log_mass_B)).clamp_min_(0)
        return torch.stack([log_mass_B, mean_B, variance_B, spent_B])

    def _piece(self, rows: Tensor | slice, piece: slice) -> tuple[Tensor, Tensor]:
        """Copies that may be written to, without -inf."""
        return (
            self.student_BV[rows, piece].to(self.wide, copy=True).clamp_min_(IMPOSSIBLE),
            self.teacher_BV[rows, piece].to(self.wide, copy=True).clamp_min_(IMPOSSIBLE),
        )


class _Sum:
    """Log mass and power means of r under weights, per row, gathered over the pieces of a vocabulary."""

    def __init__(self, num_sums: int) -> None:
        self.num_sums = num_sums
        self.peaks: list[Tensor] = []
        self.sums: list[Tensor] = []

    def add(self, peak_B1: Tensor, weights_BN: Tensor, log_ratio_BN: Tensor | None = None) -> None:
        """Σ w, Σ w r, Σ w r², ...; the weights, which are relative to the peak, are used up."""
        sums = [weights_BN.sum(1)]
        for _ in range(self.num_sums - 1):
            assert log_ratio_BN is not None
            sums.append(weights_BN.mul_(log_ratio_BN).sum(1))
        self.peaks.append(peak_B1.squeeze(1))
        self.sums.append(torch.stack(sums))

    def total(self) -> Tensor:
        """log Σ w, then the means of r, r², ..., stacked as [num_sums, B]."""
        peak_B, sums_SB = self.peaks[0], self.sums[0]
        if len(self.peaks) > 1:
            peaks_PB = torch.stack(self.peaks)
            peak_B = peaks_PB.amax(0)
            sums_SB = (torch.stack(self.sums) * (peaks_PB - peak_B).exp()[:, None]).sum(0)
        total_SB = sums_SB / sums_SB[0]
        total_SB[0] = sums_SB[0].log() + peak_B
        return total_SB


def _is_hole(log_ratio_BN: Tensor) -> Tensor:
    """One side forbids the token, or its ratio is not a number."""
    return ~(log_ratio_BN.abs() < -LOWEST_PEAK)


def _peak(values_BN: Tensor) -> Tensor:
    return values_BN.amax(1, keepdim=True).clamp_min_(LOWEST_PEAK)


def _entries(device: torch.device) -> int:
    return PIECE_ENTRIES_CPU if device.type == "cpu" else PIECE_ENTRIES_ELSEWHERE


def fits_a_piece(logits: Tensor) -> bool:
    """All rows together are no more than what is worked on at a time."""
    return logits.numel() <= _entries(logits.device)


def row_groups(num_rows: int, vocabulary_size: int, device: torch.device) -> list[slice]:
    """Consecutive rows that fill a piece; one empty group for no rows."""
    size = max(1, _entries(device) // vocabulary_size)
    return [slice(first, first + size) for first in range(0, max(num_rows, 1), size)]


def _groups_of(logits_BV: Tensor) -> list[slice]:
    return row_groups(len(logits_BV), logits_BV.shape[1], logits_BV.device)


def _groups_of_two(student_BV: Tensor, teacher_BV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Groups of rows of both; one tensor that stands for both stays one."""
    for rows in _groups_of(student_BV):
        student = student_BV[rows]
        yield rows, student, student if teacher_BV is student_BV else teacher_BV[rows]


def _pieces(logits_BV: Tensor) -> list[slice]:
    """Consecutive stretches of the vocabulary."""
    entries = _entries(logits_BV.device)
    return [slice(first, first + entries) for first in range(0, logits_BV.shape[1], entries)]
