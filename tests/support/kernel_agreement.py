"""The Triton kernels against the torch reference: on a CPU in Triton's interpreter, on a GPU as they are.

Run as a program it does the former, because the interpreter must be switched on before Triton is imported:

    TRITON_INTERPRET=1 python -m tests.support.kernel_agreement
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from tests.support.rows import RADII, related_rows
from tutelage.distributions import geometric_blend, normalise, sample
from tutelage.kernels import BlendPoint, reference
from tutelage.policies import Behaviour
from tutelage.rollout.decoding.drafts import judge_drafts

# Blends, KLs and log masses: float32 sums of up to a vocabulary, and exponentials of a GPU's approximate kind.
RELATIVE = 2e-5
LOG_MASS = 1e-5

# A draw closer than rounding to the boundary of two tokens may tip, once in some 100,000 draws.
TIES_ALLOWED = 1e-3


def cases(largest_vocabulary: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Student and teacher logits and radii: every type, shape and odd row that is promised."""
    radii = torch.tensor(RADII, dtype=torch.float64)
    found = {}
    for vocabulary, std in ((2, 1.0), (5, 3.0), (17, 8.0), (335, 0.1), (335, 20.0), (largest_vocabulary, 2.5)):
        found[f"V {vocabulary}, std {std}"] = (*related_rows(len(RADII), vocabulary, std, seed=vocabulary), radii)
    student, teacher = related_rows(len(RADII), 300, 2.5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found[str(dtype)] = student.to(dtype), teacher.to(dtype), radii
    found["two types"] = student.bfloat16(), teacher, radii
    found["offsets"] = student + 5000, teacher - 3000, radii
    found["rows apart in memory"] = student.repeat(1, 2)[:, :300], teacher.repeat(1, 2)[:, :300], radii
    holes = torch.rand(2, *student.shape, generator=torch.Generator().manual_seed(2)) < 0.02
    found["holes"] = student.masked_fill(holes[0], -math.inf), teacher.masked_fill(holes[1], -math.inf), radii.flip(0)
    found["equal"] = student, student.clone(), radii
    found["odd rows"] = odd_rows()
    return found


def odd_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Limits of the path and broken rows."""
    inf = math.inf
    student, teacher = related_rows(9, 300, 2.0, seed=4)
    student[0, 1:], teacher[1, 1:] = -inf, -inf
    student[2, :150], teacher[2, 150:] = -inf, -inf
    student[3, 7] = math.nan
    teacher[4] = -inf
    student[5, :100] = -inf
    student[6, 5] += 90
    radii = torch.tensor([0.01, 50.0, 1.0, 0.01, 0.01, 90.0, 0.01, 0.0, inf], dtype=torch.float64)
    return student, teacher, radii


def assert_agree(name: str, student: Tensor, teacher: Tensor, radii: Tensor, repeats: int) -> None:
    """Same points to rounding, same tokens in `repeats` draws per row, on the device of the rows."""
    from tutelage.kernels import triton_kernels

    expected = reference.blend_point(student, teacher, radii)
    point = triton_kernels.blend_point(student, teacher, radii)
    for field, relative, absolute in (
        ("blend_B", RELATIVE, 0.0),
        ("kl_to_student_B", RELATIVE, 1e-9),
        ("student_log_mass_B", 1e-9, LOG_MASS),
        ("teacher_log_mass_B", 1e-9, LOG_MASS),
    ):
        torch.testing.assert_close(
            getattr(point, field),
            getattr(expected, field),
            rtol=relative,
            atol=absolute,
            equal_nan=True,
            msg=lambda text, field=field: f"{name}, {field}: {text}",
        )
    # Each to its own blend: where the logits are far apart, a blend that differs by rounding has another log mass.
    torch.testing.assert_close(log_norm(point), log_norm(expected), rtol=RELATIVE, atol=LOG_MASS, equal_nan=True)
    uniforms, keeps = torch.rand(2, repeats * len(radii), generator=torch.Generator().manual_seed(1)).double()
    rows = [part.repeat_interleave(repeats, 0) for part in (student, teacher)]
    points = BlendPoint(*(part.repeat_interleave(repeats) for part in expected))
    uniforms, keeps = uniforms.to(student.device), keeps.to(student.device)
    for draw in ("draw_blend", "draw_residual"):
        tokens = getattr(triton_kernels, draw)(*rows, points, uniforms)
        assert_same_tokens(f"{name}, {draw}", tokens, getattr(reference, draw)(*rows, points, uniforms))
    drafts = triton_kernels.draw(rows[0], uniforms)
    assert_same_tokens(f"{name}, draw", drafts, sample(rows[0], uniforms))
    assert_judges_alike(name, *rows, radii.repeat_interleave(repeats), drafts.clamp_min(0), keeps)


def assert_judges_alike(
    name: str, student: Tensor, teacher: Tensor, radii: Tensor, drafts: Tensor, keeps: Tensor
) -> None:
    """The fused program against the rule in plain torch, on drafts of one token, and with keeps that refuse most."""
    from tutelage.kernels import triton_kernels

    for keeps_here in (keeps, 1 - keeps / 100):
        point, judged = triton_kernels.judge(student, teacher, radii, drafts, keeps_here)
        # Where nothing but rounding is gained by the blend, whether a draft stays is rounding, too.
        counts = (point.kl_to_student_B > 1e-9) | point.kl_to_student_B.isnan() | (radii == 0)
        behaviour = Behaviour(plain_blend(student, teacher, point)[:, None])
        wanted = judge_drafts(Behaviour(normalise(student)[:, None]), behaviour, drafts[:, None], keeps_here[:, None])
        tokens = torch.where(judged.is_kept_B, drafts, judged.replacements_B)
        assert_same_tokens(f"{name}, judge", tokens[counts], wanted.tokens_BL[counts, 0])
        assert_same_tokens(f"{name}, judged", judged.is_kept_B[counts], ~wanted.replaced_BL[counts, 0])


def plain_blend(student: Tensor, teacher: Tensor, point: BlendPoint) -> Tensor:
    """log mu, in float64 and narrowed, from whole rows."""
    blended = geometric_blend(normalise(student.double()), normalise(teacher.double()), point.blend_B)
    return blended.to(torch.promote_types(student.dtype, torch.float32))


def assert_same_tokens(name: str, tokens: Tensor, wanted: Tensor) -> None:
    """But for ties within rounding."""
    share = (tokens != wanted).double().mean().item()
    assert not share > TIES_ALLOWED, f"{name}: {share:.2%} differ"


def log_norm(point: BlendPoint) -> Tensor:
    """log Σ p^(1-b) q^b."""
    masses = torch.stack([point.student_log_mass_B, point.teacher_log_mass_B])
    masses = torch.where(torch.stack([point.blend_B == 1, point.blend_B == 0]), 0, masses)
    return point.blend_log_mass_B - torch.lerp(*masses, point.blend_B)


if __name__ == "__main__":
    for case, rows in cases(largest_vocabulary=5000).items():
        assert_agree(case, *rows, repeats=2)
    print("agreed", file=sys.stderr)
