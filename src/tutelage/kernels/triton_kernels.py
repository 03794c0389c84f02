"""What Triton computes on CUDA in the place of `kernels.reference`: one program per row, and the host decides nothing.

The programs: `triton_solve` the trust region, `triton_composition` the other policies, `triton_draws` draws of both.
"""

# Triton is optional, so its types may be absent.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import torch
import triton
from torch import Tensor

from tutelage.distributions import NO_TOKEN
from tutelage.kernels.composition import Composition, CompositionSums
from tutelage.kernels.solve import BlendPoint, Judged
from tutelage.kernels.triton_composition import A_TOKEN, A_VERDICT, NOTHING_ELSE, _composition_kernel
from tutelage.kernels.triton_draws import (
    INTERLEAVED,
    MIXED,
    TILTED,
    _block_sums_kernel,
    _draw_blend_kernel,
    _draw_kernel,
)
from tutelage.kernels.triton_rows import NUM_WARPS, _block, _contiguous_rows, _launch, _on
from tutelage.kernels.triton_solve import _solve_kernel

__all__ = [
    "blend_point",
    "draw",
    "draw_blend",
    "draw_composed",
    "judge",
    "judge_composed",
    "read_composition",
]


def blend_point(student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor) -> BlendPoint:
    """Where the trust region of each row ends; see `tutelage.kernels.blend_point`, which checks the arguments."""
    no_drafts_B = torch.zeros_like(radius_B, dtype=torch.int64)
    return _solved(student_logits_BV, teacher_logits_BV, radius_B, no_drafts_B, radius_B, has_draft=False)[0]


def judge(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, radius_B: Tensor, drafts_B: Tensor, keeps_B: Tensor
) -> tuple[BlendPoint, Judged]:
    """Solve, judge and replace in one launch; see `tutelage.kernels.judge_trust_region`."""
    return _solved(student_logits_BV, teacher_logits_BV, radius_B, drafts_B, keeps_B, has_draft=True)


def _solved(
    student_logits_BV: Tensor,
    teacher_logits_BV: Tensor,
    radius_B: Tensor,
    drafts_B: Tensor,
    keeps_B: Tensor,
    *,
    has_draft: bool,
) -> tuple[BlendPoint, Judged]:
    point_5B = radius_B.new_empty(5, len(radius_B), dtype=torch.float64)
    is_kept_B = torch.empty_like(drafts_B, dtype=torch.int8)
    replacements_B = torch.empty_like(drafts_B)
    _launch(
        _solve_kernel,
        student_logits_BV,
        teacher_logits_BV,
        radius_B.double(),
        drafts_B,
        keeps_B.double(),
        point_5B,
        is_kept_B,
        replacements_B,
        HAS_DRAFT=has_draft,
    )
    return BlendPoint(*point_5B), Judged(is_kept_B.bool(), replacements_B)


def draw_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor) -> Tensor:
    """One token per row from mu; see `tutelage.kernels.draw_blend`."""
    tokens_B = torch.empty(len(uniforms_B), dtype=torch.int64, device=uniforms_B.device)
    _launch(
        _draw_blend_kernel,
        student_logits_BV,
        teacher_logits_BV,
        torch.stack(list(point)),
        uniforms_B.double(),
        tokens_B,
    )
    return tokens_B.clamp_min_(NO_TOKEN)


def read_composition(composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> CompositionSums:
    """The numbers of each row; see `tutelage.kernels.read_composition`."""
    sums, _ = _composed(composition, student_logits_BV, teacher_logits_BV)
    return sums


def draw_composed(
    composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor, uniforms_B: Tensor
) -> tuple[CompositionSums, Tensor]:
    """Numbers and a token of each row in one launch; see `tutelage.kernels.draw_composed`."""
    sums, judged = _composed(composition, student_logits_BV, teacher_logits_BV, uniforms_B)
    return sums, judged.replacements_B.clamp_min_(NO_TOKEN)


def judge_composed(
    composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor, drafts_B: Tensor, keeps_B: Tensor
) -> tuple[CompositionSums, Judged]:
    """Numbers and a verdict of each row in one launch; see `tutelage.kernels.judge_composed`."""
    return _composed(composition, student_logits_BV, teacher_logits_BV, keeps_B, drafts_B)


def _composed(
    composition: Composition,
    student_logits_BV: Tensor,
    teacher_logits_BV: Tensor,
    uniforms_B: Tensor | None = None,
    drafts_B: Tensor | None = None,
) -> tuple[CompositionSums, Judged]:
    """What is asked of each row follows from what is given."""
    num_rows, device = len(student_logits_BV), student_logits_BV.device
    asked = NOTHING_ELSE if uniforms_B is None else A_TOKEN if drafts_B is None else A_VERDICT
    # Where a row has none, no program looks at it.
    unused_B = torch.empty(0, dtype=torch.int64, device=device)
    sums_5B = torch.empty(5, num_rows, dtype=torch.float64, device=device)
    places_2B = torch.empty(2, num_rows, dtype=torch.int64, device=device)
    is_kept_B = torch.empty(num_rows, dtype=torch.int8, device=device)
    tokens_B = torch.empty(num_rows, dtype=torch.int64, device=device)
    least_B1, num_ties_B1 = composition.least_kept(teacher_logits_BV)
    least_B, num_ties_B = least_B1.squeeze(-1).double(), num_ties_B1.squeeze(-1)
    form = TILTED if composition.is_tilted else MIXED if composition.top_k is None else INTERLEAVED
    _launch(
        _composition_kernel,
        student_logits_BV,
        teacher_logits_BV,
        composition.numbers_of_rows(student_logits_BV),
        least_B,
        num_ties_B,
        unused_B if drafts_B is None else drafts_B,
        unused_B if uniforms_B is None else uniforms_B.double(),
        sums_5B,
        places_2B,
        is_kept_B,
        tokens_B,
        FORM=form,
        IS_CERTAIN=composition.temperature == 0,
        HAS_NORM=composition.has_norm,
        ASKED=asked,
    )
    sums = CompositionSums(*sums_5B, least_B, places_2B[0], places_2B[1])
    return sums, Judged(is_kept_B.bool(), tokens_B)


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
