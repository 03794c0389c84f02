"""The Triton kernels against the torch reference: on a CPU in Triton's interpreter, on a GPU as they are.

Run as a program it does the former, because the interpreter must be switched on before Triton is imported:

    TRITON_INTERPRET=1 python -m tests.support.kernel_agreement trust_regions|rows|compositions|laws
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor

from tests.support.rows import RADII, related_rows
from tutelage.distributions import geometric_blend, normalise, sample
from tutelage.kernels import BlendPoint, Composition, Rows, reference, sampler
from tutelage.policies import (
    Behaviour,
    FixedBlend,
    Interleaved,
    Mixture,
    Policy,
    Softmax,
    Teacher,
    TeacherPrefix,
    Temperature,
    TrustRegion,
    base,
    composed,
    trust_region,
)
from tutelage.rollout.decoding.drafts import judge_drafts

# Blends, KLs and log masses: float32 sums of up to a vocabulary, and exponentials of a GPU's approximate kind.
RELATIVE = 2e-5
LOG_MASS = 1e-5

POLICIES: list[Policy] = [
    TrustRegion(0.05),
    FixedBlend(0.3),
    Mixture(0.3),
    Interleaved(25, 0.3),
    Interleaved(1, 0.0),
    Temperature(0.8),
    Teacher(),
    TeacherPrefix(1),
]

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
    found["equal logits"] = torch.zeros_like(student), teacher.round(), radii
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
    tokens = triton_kernels.draw_blend(*rows, points, uniforms)
    assert_same_tokens(f"{name}, draw_blend", tokens, reference.draw_blend(*rows, points, uniforms))
    drafts = triton_kernels.draw(rows[0], uniforms)
    assert_same_tokens(f"{name}, draw", drafts, sample(rows[0], uniforms))
    drafts = drafts.clamp_min(0)
    assert_judges_alike(name, *rows, radii.repeat_interleave(repeats), drafts, keeps)


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


def compositions(num_rows: int, vocabulary_size: int) -> dict[str, Composition]:
    """What the policies make, at their limits, too."""
    is_prefix = torch.arange(num_rows) % 2 == 0
    return {
        "teacher": Composition(),
        "teacher in every second row": Composition(blend=is_prefix),
        "fixed blend": Composition(blend=0.3),
        "a little of the teacher": Composition(blend=1e-4),
        "mixture": Composition(weight=0.3),
        "SKD": Composition(temperature=0.3, top_k=3),
        "SKD, all tokens": Composition(temperature=1.0, top_k=vocabulary_size),
        "SKD, greedy": Composition(temperature=0.0, top_k=1),
        "temperature": Composition(temperature=0.8),
        "hot": Composition(temperature=1.3),
        "nearly greedy": Composition(temperature=1e-6),
        "greedy": Composition(temperature=0.0),
    }


def teacher_of(composition: Composition, student: Tensor, teacher: Tensor) -> Tensor:
    """The other side of a composition: a temperature alone has no teacher, and reads the student twice."""
    return student if composition.temperature != 1 and composition.top_k is None else teacher


def assert_compose_alike(name: str, student: Tensor, teacher: Tensor, every: int = 1, first: int = 0) -> None:
    """Every n-th composition in one program per row against whole rows in plain torch: numbers, tokens and verdicts."""
    from tutelage.kernels import triton_kernels

    uniforms, keeps = torch.rand(2, len(student), generator=torch.Generator().manual_seed(2)).double()
    uniforms, keeps = uniforms.to(student.device), 1 - keeps.to(student.device) / 3  # which refuse often
    drafts = sample(student, uniforms).clamp_min(0)
    ties: dict[str, list[int]] = {}
    for label, composition in list(compositions(*student.shape).items())[first % every :: every]:
        if isinstance(composition.blend, Tensor):
            composition = Composition(blend=composition.blend.to(student.device))
        own_teacher = teacher_of(composition, student, teacher)
        rows = composition.rows(student, own_teacher)
        expected = composition.sums(student, own_teacher, rows)
        sums, tokens = triton_kernels.draw_composed(composition, student, own_teacher, uniforms)
        for field, atol in (("kl_to_student_B", 2e-6), ("tilted_share_B", 1e-6)):
            torch.testing.assert_close(
                getattr(sums, field),
                getattr(expected, field),
                rtol=RELATIVE,
                atol=atol,
                equal_nan=True,
                msg=lambda text, field=field, label=label: f"{name}, {label}, {field}: {text}",
            )
        counts = ~expected.kl_to_student_B.isnan()
        for field in ("last_place_B", "certain_B") if composition.temperature == 0 else ("last_place_B",):
            assert torch.equal(getattr(sums, field)[counts], getattr(expected, field)[counts]), (name, label, field)
        differing = {f"{label}, draw": tokens != sample(rows.logprobs_BV, uniforms)}
        known = torch.where(tokens < 0, drafts, tokens)
        logits = (side.gather(-1, known[:, None])[:, 0] for side in (student, own_teacher))
        torch.testing.assert_close(
            composition.logprobs(sums, *logits, known).float()[counts],
            rows.logprobs_BV.gather(-1, known[:, None])[:, 0].float()[counts],
            rtol=RELATIVE,
            atol=LOG_MASS / max(composition.temperature, 0.1),
            msg=lambda text, label=label: f"{name}, {label}, logprobs: {text}",
        )
        _, judged = triton_kernels.judge_composed(composition, student, own_teacher, drafts, keeps)
        wanted = judge_drafts(
            Behaviour(rows.student_BV[:, None]), Behaviour(rows.logprobs_BV[:, None]), drafts[:, None], keeps[:, None]
        )
        # Where mu is the student up to rounding, whether a draft stays is rounding, too.
        differs = ~((rows.logprobs_BV.exp() - rows.student_BV.exp()).abs().amax(-1) < 1e-5)
        found = torch.where(judged.is_kept_B, drafts, judged.replacements_B)
        differing[f"{label}, judge"] = (found != wanted.tokens_BL[:, 0]) & differs
        differing[f"{label}, judged"] = (judged.is_kept_B == wanted.replaced_BL[:, 0]) & differs
        places = {case: rows_R.nonzero()[:, 0].tolist() for case, rows_R in differing.items() if rows_R.any()}
        ties |= places
    num_tokens = 3 * len(student) * len(compositions(*student.shape)) / every
    assert sum(map(len, ties.values())) <= max(1, TIES_ALLOWED * num_tokens), f"{name}: {ties} differ"


def assert_lawful(device: str, num_strata: int, every: int = 1) -> None:
    """Tokens of evenly spaced numbers are mu, up to one each; so are judged drafts, added up over all drafts."""
    from tutelage.kernels import triton_kernels

    (student,), (teacher,) = (rows.to(device) for rows in related_rows(1, 5, 1.5, seed=5))
    student[1] = -math.inf
    strata = ((torch.arange(num_strata).double() + 0.5) / num_strata).to(device)
    for label, composition in list(compositions(1, 5).items())[::every]:
        if isinstance(composition.blend, Tensor):
            continue
        q = teacher_of(composition, student, teacher)
        mu = composition.rows(student[None], q[None]).logprobs_BV[0].double().exp()
        rows = [side.expand(num_strata, -1).contiguous() for side in (student, q)]
        _, tokens = triton_kernels.draw_composed(composition, *rows, strata)
        counts = tokens.bincount(minlength=5).double()
        assert ((counts - num_strata * mu).abs() < 1.001).all(), f"{label}: {counts} draws of {num_strata * mu}"
        drafts = torch.arange(5, device=device).repeat_interleave(num_strata)
        rows = [side.expand(len(drafts), -1).contiguous() for side in (student, q)]
        _, judged = triton_kernels.judge_composed(composition, *rows, drafts, strata.repeat(5))
        found = torch.where(judged.is_kept_B, drafts, judged.replacements_B)
        weights = student.double().softmax(-1)[drafts] / num_strata
        # The draft that p forbids has no weight, and no verdict.
        law = torch.zeros_like(mu).index_add_(0, found.clamp_min(0), weights)
        torch.testing.assert_close(
            law, mu, rtol=0, atol=3 / num_strata, msg=lambda text, label=label: f"{label}: {text}"
        )


def assert_policy_judges_alike(policy: Policy, device: str, shape: tuple[int, int, int]) -> None:
    """Draws and verdicts of `policy` with kernels, whose rows are never whole, and in plain torch on a CPU."""
    num_rows, length, vocabulary_size = shape
    student, teacher = (rows.reshape(shape) for rows in related_rows(num_rows * length, vocabulary_size, 2.0))
    draws, keeps = torch.rand(2, num_rows, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drafts, places = sample(student, draws), torch.arange(length).expand(num_rows, length)
    found = []
    for there, has_kernels in (("cpu", False), (device, True)):
        with patch.object(sampler, "has_kernels", lambda _, has=has_kernels: has), ExitStack() as stack:
            for module in (composed, trust_region, base):
                stack.enter_context(patch.object(module, "has_kernels", sampler.has_kernels))
            rows = [logits.to(there) for logits in (student, teacher)]
            behaviour = policy.propose(*rows, places.to(there))
            verdict = judge_drafts(Softmax(rows[0]), behaviour, drafts.to(there), keeps.to(there))
            stands = torch.arange(length, device=there) < verdict.lengths_B[:, None]
            logprobs = behaviour.logprobs_of(verdict.tokens_BL)[stands]
            drawn = policy.propose(*rows, places.to(there)).draw(draws.to(there))
            exact = [verdict.tokens_BL[stands], verdict.replaced_BL[stands], drawn]
            found.append(([each.tolist() for each in exact], logprobs.cpu(), behaviour.diagnostics))
    (exact, logprobs, diagnostics), (kernel_exact, kernel_logprobs, kernel_diagnostics) = found
    assert exact == kernel_exact, policy
    torch.testing.assert_close(kernel_logprobs, logprobs, rtol=1e-5, atol=1e-4)
    assert diagnostics.keys() == kernel_diagnostics.keys()
    for name, value in diagnostics.items():
        assert value.dtype == kernel_diagnostics[name].dtype
        torch.testing.assert_close(kernel_diagnostics[name].cpu(), value, rtol=1e-4, atol=2e-6)


def assert_read_alike(name: str, logits: Tensor, support_size: int = 3) -> None:
    """One read of the logits against whole rows: a token, entropy, the most probable tokens, and what lies outside."""
    from tutelage.kernels.rows import ReadRows

    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(logits.shape[-1], (len(logits),), generator=generator).to(logits.device)
    ids = torch.randint(logits.shape[-1], (len(logits), support_size), generator=generator).to(logits.device)
    found = []
    for rows in (Rows(normalise(logits)), ReadRows(logits), ReadRows(logits)):
        before = rows.entropy() if len(found) == 2 else None  # before the tail, and read with it
        tail, entropy = rows.tail(ids), rows.entropy() if before is None else before
        top = rows.logprobs_of(rows.top(support_size))  # of equally probable ones it does not matter which
        found.append([rows.logprobs_of(tokens), entropy, tail, rows.logprobs_of(ids), top])
    for own in found[1:]:
        for which, (mine, wanted) in enumerate(zip(own, found[0], strict=True)):
            assert mine.dtype == wanted.dtype and mine.shape == wanted.shape
            torch.testing.assert_close(
                mine,
                wanted,
                rtol=RELATIVE,
                atol=LOG_MASS,
                equal_nan=True,
                msg=lambda text, which=which: f"{name}, number {which}: {text}",
            )


def excess(tokens: Tensor, probs: Tensor) -> float:
    """Chi-square against `probs` in standard deviations above its mean; rare tokens share a cell. A few are normal."""
    assert (probs[tokens] > 0).all(), "a token of probability 0"
    counts, expected = tokens.bincount(minlength=len(probs)).double(), probs.double() * len(tokens)
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = max(len(counts) - 1, 1)
    return float((((counts - expected).square() / expected).sum() - freedom) / math.sqrt(2 * freedom))


def plain_blend(student: Tensor, teacher: Tensor, point: BlendPoint) -> Tensor:
    """log mu, in float64 and narrowed, from whole rows."""
    blended = geometric_blend(normalise(student.double()), normalise(teacher.double()), point.blend_B)
    return blended.to(torch.promote_types(student.dtype, torch.float32))


def assert_same_tokens(name: str, tokens: Tensor, wanted: Tensor) -> None:
    """But for ties within rounding."""
    if not len(wanted):
        return
    share = (tokens != wanted).double().mean().item()
    assert not share > TIES_ALLOWED, f"{name}: {share:.2%} differ"


def log_norm(point: BlendPoint) -> Tensor:
    """log Σ p^(1-b) q^b."""
    masses = torch.stack([point.student_log_mass_B, point.teacher_log_mass_B])
    masses = torch.where(torch.stack([point.blend_B == 1, point.blend_B == 0]), 0, masses)
    return point.blend_log_mass_B - torch.lerp(*masses, point.blend_B)


def agree_on_trust_regions() -> None:
    """The solve, its draws and verdicts."""
    for case, rows in cases(largest_vocabulary=5000).items():
        assert_agree(case, *rows, repeats=2)


def agree_on_rows() -> None:
    """What records hold of whole rows."""
    from tutelage.kernels.rows import ReadRows

    for case, (student, teacher, _) in cases(largest_vocabulary=5000).items():
        assert_read_alike(f"{case}, student", student, min(3, student.shape[1]))
        assert_read_alike(f"{case}, teacher", teacher, student.shape[1] if student.shape[1] < 6 else 1)
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(5))
    logits[:, 9] = torch.tensor([95.0, 150.0])  # beside which the others' weights are 0 in float32
    tail, wanted = (rows.tail(torch.full((2, 1), 9)) for rows in (ReadRows(logits), Rows(normalise(logits))))
    torch.testing.assert_close(tail, wanted, rtol=RELATIVE, atol=LOG_MASS)


def agree_on_compositions() -> None:
    """The other policies. The interpreter takes a tenth of a second for a row, so odd rows alone meet all of them."""
    for place, (case, (student, teacher, _)) in enumerate(cases(largest_vocabulary=5000).items()):
        is_odd = case in ("holes", "odd rows", "equal logits", "torch.bfloat16")
        assert_compose_alike(case, student, teacher, every=1 if is_odd else 6, first=place)


def agree_on_laws() -> None:
    """What is drawn and judged follows mu, and policies say the same with kernels as without."""
    assert_lawful("cpu", num_strata=20, every=3)
    for policy in POLICIES:
        assert_policy_judges_alike(policy, "cpu", (4, 2, 300))


if __name__ == "__main__":
    {
        "trust_regions": agree_on_trust_regions,
        "rows": agree_on_rows,
        "compositions": agree_on_compositions,
        "laws": agree_on_laws,
    }[sys.argv[1]]()
    print("agreed", file=sys.stderr)
