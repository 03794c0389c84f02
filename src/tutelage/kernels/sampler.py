"""The public functions: check the arguments, flatten the leading axes, choose the backend.

Axis letters: B any number of leading axes (rows), V vocabulary. p is the student, q the teacher, mu their blend.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from tutelage.distributions import widest_dtype
from tutelage.errors import ConfigurationError, VocabularyMismatchError
from tutelage.kernels import reference
from tutelage.kernels.composition import Composition, CompositionSums
from tutelage.kernels.solve import BlendPoint, Judged

__all__ = [
    "blend_point",
    "draw",
    "draw_blend",
    "draw_composed",
    "has_kernels",
    "judge_composed",
    "judge_trust_region",
    "read_composition",
]


@torch.no_grad()
def blend_point(student_logits_BV: Tensor, teacher_logits_BV: Tensor, kl_radius: Tensor | float) -> BlendPoint:
    """Where the trust region of each row ends, found in two or three reads of the logits and without a [B, V] tensor.

    b* = max { b in [0, 1] : KL(mu_b || p) <= radius },   mu_b ∝ p^(1-b) q^b     (TRB, arXiv 2605.31159, Section 4)

    The limits are those of `tutelage.distributions.trust_region_blend`: radius 0 is the student, a radius >= KL(q || p)
    the teacher (a radius within 1e-6 of it, relative, counts), tokens that one side forbids are priced or given up.
    Rows whose logits spread over hundreds of nats take more reads.

    Args:
      student_logits_BV, teacher_logits_BV: float16, bfloat16, float32 or float64; need not be normalised; -inf allowed;
        same shape, the last axis contiguous.
      kl_radius: nats, a number or a tensor that broadcasts over the rows. A tensor is taken as it is, because looking
        at it would mean waiting for the device: a row with a negative or NaN radius gives the student.
    Returns:
      BlendPoint of shape [B], in float64 where the device has it. Each row keeps
      KL(mu || p) <= radius (1 + 1e-3) + 1e-7, with equality to that tolerance for 0 < blend < 1, and its blend is
      within 1e-3, relative, of b* for radii down to 1e-6. Rows that are NaN or empty on either side are NaN, except
      that radius 0 never looks at the teacher.
    """
    _check_same_shape(student_logits_BV, teacher_logits_BV)
    *leading, vocabulary_size = student_logits_BV.shape
    radius_B = _radius_of_rows(kl_radius, student_logits_BV)
    point = _backend(student_logits_BV).blend_point(
        student_logits_BV.reshape(-1, vocabulary_size), teacher_logits_BV.reshape(-1, vocabulary_size), radius_B
    )
    return BlendPoint(*(field.reshape(leading) for field in point))


@torch.no_grad()
def draw_blend(student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor) -> Tensor:
    """One token per row from mu, drawn as by `distributions.sample`.

    The same uniform gives the same token on every backend, but for rounding.

    Args:
      student_logits_BV, teacher_logits_BV: as for `blend_point`.
      point: what `blend_point` found for these rows.
      uniforms_B: float64 in [0, 1), the row's own randomness.
    Returns:
      tokens_B: int64, never a token of probability 0. Rows without mass, or with a NaN, give NO_TOKEN.
    """
    _check_same_shape(student_logits_BV, teacher_logits_BV)
    *leading, vocabulary_size = student_logits_BV.shape
    tokens_B: Tensor = _backend(student_logits_BV).draw_blend(
        student_logits_BV.reshape(-1, vocabulary_size),
        teacher_logits_BV.reshape(-1, vocabulary_size),
        BlendPoint(*(field.reshape(-1) for field in point)),
        uniforms_B.to(student_logits_BV.device).reshape(-1),
    )
    return tokens_B.reshape(leading)


@torch.no_grad()
def draw(log_weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token per row from weights, as `distributions.sample` draws it; the same token, but for rounding.

    Args:
      log_weights_BV: need not be normalised; -inf allowed.
      uniforms_B: float64 in [0, 1).
    Returns:
      tokens_B: int64, never a token of probability 0. Rows without any mass, or with a NaN, give NO_TOKEN.
    """
    vocabulary_size = log_weights_BV.shape[-1]
    tokens_B: Tensor = _backend(log_weights_BV).draw(
        log_weights_BV.reshape(-1, vocabulary_size), uniforms_B.reshape(-1)
    )
    return tokens_B.reshape(uniforms_B.shape)


@torch.no_grad()
def judge_trust_region(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, kl_radius: float, drafts_B: Tensor, keeps_B: Tensor
) -> tuple[BlendPoint, Judged]:
    """Solve, judge one draft per row, and draw what replaces it, in one program per row.

    The draft v stays if u < mu(v) / p(v). Otherwise u, which is then uniform on [mu/p, 1), is rescaled to [0, 1) and
    draws from (mu - p)+; where that is empty, because mu = p up to rounding, the draft was right.

    Args:
      student_logits_BV, teacher_logits_BV, kl_radius: as for `blend_point`, on a device that `has_kernels`.
      drafts_B: drawn from p.
      keeps_B: u, uniform in [0, 1), independent of the drafts.
    """
    assert has_kernels(student_logits_BV.device)
    _check_same_shape(student_logits_BV, teacher_logits_BV)
    *leading, vocabulary_size = student_logits_BV.shape
    point, judged = _backend(student_logits_BV).judge(
        student_logits_BV.reshape(-1, vocabulary_size),
        teacher_logits_BV.reshape(-1, vocabulary_size),
        _radius_of_rows(kl_radius, student_logits_BV),
        drafts_B.reshape(-1),
        keeps_B.reshape(-1),
    )
    return BlendPoint(*(field.reshape(leading) for field in point)), Judged(*(each.reshape(leading) for each in judged))


@torch.no_grad()
def read_composition(composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> CompositionSums:
    """The numbers of each row from which the probabilities under mu follow.

    Args:
      composition: what mu is made of.
      student_logits_BV, teacher_logits_BV: as for `blend_point`. One tensor may stand for both.
    Returns:
      CompositionSums of shape [B].
    """
    leading, composition, student_BV, teacher_BV = _flat(composition, student_logits_BV, teacher_logits_BV)
    sums = _backend(student_BV).read_composition(composition, student_BV, teacher_BV)
    return CompositionSums(*(field.reshape(leading) for field in sums))


@torch.no_grad()
def draw_composed(
    composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor, uniforms_B: Tensor
) -> tuple[CompositionSums, Tensor]:
    """Those numbers, and one token per row from mu, drawn as by `distributions.sample`.

    Args:
      composition, student_logits_BV, teacher_logits_BV: as for `read_composition`, on a device that `has_kernels`.
      uniforms_B: float64 in [0, 1), the row's own randomness.
    """
    assert has_kernels(student_logits_BV.device)
    leading, composition, student_BV, teacher_BV = _flat(composition, student_logits_BV, teacher_logits_BV)
    sums, tokens_B = _backend(student_BV).draw_composed(
        composition, student_BV, teacher_BV, uniforms_B.to(student_BV.device).reshape(-1)
    )
    return CompositionSums(*(field.reshape(leading) for field in sums)), tokens_B.reshape(leading)


@torch.no_grad()
def judge_composed(
    composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor, drafts_B: Tensor, keeps_B: Tensor
) -> tuple[CompositionSums, Judged]:
    """Those numbers, whether one draft per row stays, and what replaces it, in one program per row.

    Args:
      composition, student_logits_BV, teacher_logits_BV: as for `read_composition`, on a device that `has_kernels`.
      drafts_B, keeps_B: as for `judge_trust_region`, whose rule it follows.
    """
    assert has_kernels(student_logits_BV.device)
    leading, composition, student_BV, teacher_BV = _flat(composition, student_logits_BV, teacher_logits_BV)
    sums, judged = _backend(student_BV).judge_composed(
        composition, student_BV, teacher_BV, drafts_B.reshape(-1), keeps_B.reshape(-1)
    )
    return (
        CompositionSums(*(field.reshape(leading) for field in sums)),
        Judged(*(each.reshape(leading) for each in judged)),
    )


def has_kernels(device: torch.device) -> bool:
    """Triton kernels compute there. Triton is optional, so it is looked for where it is used."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def _backend(logits: Tensor) -> ModuleType:
    """The backend for a device."""
    if has_kernels(logits.device):
        from tutelage.kernels import triton_kernels

        return triton_kernels
    return reference


def _flat(
    composition: Composition, student_logits_BV: Tensor, teacher_logits_BV: Tensor
) -> tuple[list[int], Composition, Tensor, Tensor]:
    """The leading axes' sizes, and all of it with one leading axis; one tensor that stands for both stays one."""
    _check_same_shape(student_logits_BV, teacher_logits_BV)
    *leading, vocabulary_size = student_logits_BV.shape
    student_BV = student_logits_BV.reshape(-1, vocabulary_size)
    is_one = teacher_logits_BV is student_logits_BV
    teacher_BV = student_BV if is_one else teacher_logits_BV.reshape(-1, vocabulary_size)
    return leading, composition.flat(), student_BV, teacher_BV


def _radius_of_rows(kl_radius: Tensor | float, logits_BV: Tensor) -> Tensor:
    """One radius for each row, flat; a number is checked."""
    leading, device = logits_BV.shape[:-1], logits_BV.device
    wide = widest_dtype(device)
    if isinstance(kl_radius, Tensor):
        return kl_radius.to(device, wide).expand(leading).reshape(-1)
    if not kl_radius >= 0:
        raise ConfigurationError(
            f"kl_radius is {kl_radius:g}; a KL radius is a number of nats and cannot be negative or NaN. "
            "Use 0 for pure student rollouts."
        )
    return torch.full(leading, kl_radius, dtype=wide, device=device).reshape(-1)


def _check_same_shape(student_logits_BV: Tensor, teacher_logits_BV: Tensor) -> None:
    if student_logits_BV.shape != teacher_logits_BV.shape:
        raise VocabularyMismatchError(
            f"student logits have shape {tuple(student_logits_BV.shape)} and teacher logits "
            f"{tuple(teacher_logits_BV.shape)}; a blend needs the same rows over the same vocabulary. "
            "Align the two vocabularies first."
        )
