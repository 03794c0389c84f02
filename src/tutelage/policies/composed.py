"""The behaviour of policies that compose mu of a share of the student and a tilted part, see `kernels.Composition`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from tutelage.distributions import gather_logprobs, wide_dtype
from tutelage.kernels import (
    ComposedRows,
    Composition,
    CompositionSums,
    Judged,
    draw,
    draw_composed,
    fits_a_piece,
    has_kernels,
    judge_composed,
    read_composition,
)
from tutelage.policies.base import Behaviour, Softmax

__all__ = ["Composed"]


class Composed(Behaviour):
    """mu as a composition of two rows of logits; in the student's place of the teacher's, one that has no teacher.

    Where there are kernels each row is read for a few numbers, together with a draw or a judgement, and probabilities
    of single tokens follow from the numbers. Elsewhere rows are made whole, once, to draw from them or where they are
    few; many rows of drafts are read for the numbers, a few rows at a time.
    """

    def __init__(self, composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> None:
        self.composition = composition
        self.student_logits_BV, self.teacher_logits_BV = student_logits_BV, teacher_logits_BV
        self._student = Softmax(student_logits_BV)
        self._sums: CompositionSums | None = None
        self._has_kernels = has_kernels(student_logits_BV.device)
        self._is_whole = fits_a_piece(student_logits_BV) and not self._has_kernels

    @property
    def sums(self) -> CompositionSums:
        if self._sums is None:
            self._sums = read_composition(self.composition, self.student_logits_BV, self.teacher_logits_BV)
        return self._sums

    @cached_property
    def diagnostics(self) -> dict[str, Tensor]:  # type: ignore[override]
        dtype = wide_dtype(self.student_logits_BV, self.teacher_logits_BV)
        whole = self._whole
        kl_to_student_B = self.sums.kl_to_student_B if whole is None else whole.kl_to_student()
        found = {"kl_to_student": kl_to_student_B.to(dtype)}
        if self.teacher_logits_BV is self.student_logits_BV:
            return found
        share_B = self.sums.tilted_share_B if whole is None else whole.tilted_share_B
        blend = self.composition.blend
        return {
            "blend": share_B.to(dtype) if isinstance(blend, float) and blend == 1 else share_B.to(dtype) * blend,
            **found,
        }

    @property
    def logprobs_BV(self) -> Tensor:
        return self._all_rows.logprobs_BV

    def logprobs_of(self, tokens_B: Tensor) -> Tensor:
        if self._whole is not None:
            return gather_logprobs(self._whole.logprobs_BV, tokens_B)
        student_B, teacher_B = (
            gather_logprobs(logits_BV, tokens_B) for logits_BV in (self.student_logits_BV, self.teacher_logits_BV)
        )
        logprobs_B = self.composition.logprobs(self.sums, student_B, teacher_B, tokens_B)
        return logprobs_B.to(wide_dtype(self.student_logits_BV, self.teacher_logits_BV))

    def rows(self, index: tuple[Any, ...]) -> Tensor:
        if self._whole is not None:
            return self._whole.logprobs_BV[index]
        student_RV, teacher_RV = self.student_logits_BV[index], self.teacher_logits_BV[index]
        return self.composition.of_rows(index).rows(student_RV, teacher_RV).logprobs_BV

    def draw(self, uniforms_B: Tensor) -> Tensor:
        if not self._has_kernels:
            self._is_whole = True
            return draw(self.logprobs_BV, uniforms_B)
        self._sums, tokens_B = draw_composed(
            self.composition, self.student_logits_BV, self.teacher_logits_BV, uniforms_B
        )
        return tokens_B

    def student(self, student_logits_BV: Tensor) -> Behaviour:
        return self._student.student(student_logits_BV)

    def judged(self, drafts_B: Tensor, keeps_B: Tensor) -> Judged | None:
        if not self._has_kernels:
            return None
        self._sums, judged = judge_composed(
            self.composition, self.student_logits_BV, self.teacher_logits_BV, drafts_B, keeps_B
        )
        return judged

    @cached_property
    def _all_rows(self) -> ComposedRows:
        rows = self.composition.rows(self.student_logits_BV, self.teacher_logits_BV)
        self._student.logprobs_BV = rows.student_BV
        return rows

    @property
    def _whole(self) -> ComposedRows | None:
        """All rows, where they are made."""
        return self._all_rows if self._is_whole else None
