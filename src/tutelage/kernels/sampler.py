"""The public functions: check the arguments, flatten the leading axes, choose the backend.

Axis letters: B any number of leading axes (rows), V vocabulary. p is the student, q the teacher, mu their blend.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from tutelage.distributions import gather_logprobs, wide_dtype, widest_dtype
from tutelage.errors import ConfigurationError, VocabularyMismatchError
from tutelage.kernels import reference
from tutelage.kernels.solve import BlendPoint, Judged

__all__ = [
    "blend_point",
    "draw",
    "draw_blend",
    "draw_residual",
    "has_kernels",
    "judge_trust_region",
    "sample_trust_region",
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
    return _drawn("draw_blend", student_logits_BV, teacher_logits_BV, point, uniforms_B)


@torch.no_grad()
def draw_residual(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor
) -> Tensor:
    """One token per row from (mu - p)+ normalised: what replaces a refused draft token (speculative decoding).

    Drawn as in `draw_blend`.

    Args:
      student_logits_BV, teacher_logits_BV, point, uniforms_B: as for `draw_blend`.
    Returns:
      tokens_B: int64, only tokens with mu > p. Rows where there is none (mu = p), and broken rows, give NO_TOKEN.
    """
    return _drawn("draw_residual", student_logits_BV, teacher_logits_BV, point, uniforms_B)


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
def sample_trust_region(
    student_logits_BV: Tensor, teacher_logits_BV: Tensor, kl_radius: Tensor | float, uniforms_B: Tensor
) -> tuple[Tensor, Tensor, BlendPoint]:
    """Solve and draw: one token per row from the distribution closest to the teacher within a radius of the student.

    Args:
      student_logits_BV, teacher_logits_BV, kl_radius: as for `blend_point`.
      uniforms_B: as for `draw_blend`.
    Returns:
      tokens_B: as from `draw_blend`.
      behaviour_logprobs_B: log mu of them, in float32 or wider; NaN where there is NO_TOKEN.
      point: as from `blend_point`.
    """
    point = blend_point(student_logits_BV, teacher_logits_BV, kl_radius)
    tokens_B = draw_blend(student_logits_BV, teacher_logits_BV, point, uniforms_B)
    student_B, teacher_B = (
        gather_logprobs(logits, tokens_B.clamp_min(0)) for logits in (student_logits_BV, teacher_logits_BV)
    )
    logprobs_B = point.logprobs(student_B, teacher_B).masked_fill(tokens_B < 0, float("nan"))
    return tokens_B, logprobs_B.to(wide_dtype(student_logits_BV, teacher_logits_BV)), point


def _drawn(
    function: str, student_logits_BV: Tensor, teacher_logits_BV: Tensor, point: BlendPoint, uniforms_B: Tensor
) -> Tensor:
    _check_same_shape(student_logits_BV, teacher_logits_BV)
    *leading, vocabulary_size = student_logits_BV.shape
    draw = getattr(_backend(student_logits_BV), function)
    tokens_B: Tensor = draw(
        student_logits_BV.reshape(-1, vocabulary_size),
        teacher_logits_BV.reshape(-1, vocabulary_size),
        BlendPoint(*(field.reshape(-1) for field in point)),
        uniforms_B.to(student_logits_BV.device).reshape(-1),
    )
    return tokens_B.reshape(leading)


def has_kernels(device: torch.device) -> bool:
    """Triton kernels compute there. Triton is optional, so it is looked for where it is used."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def _backend(logits: Tensor) -> ModuleType:
    """The backend for a device."""
    if has_kernels(logits.device):
        from tutelage.kernels import triton_kernels

        return triton_kernels
    return reference


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
