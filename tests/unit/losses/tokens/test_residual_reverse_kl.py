"""Estimates of a reverse KL that is known on a support, over all tokens of one position; numbers recomputed by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.rollouts import rated
from tests.support.scored_answers import scored
from tests.support.tiny_models import make_model
from tutelage.losses import TokenFacts, TokenLoss, UnionTopK
from tutelage.losses.distributions import ReverseKL
from tutelage.losses.support import StudentTopK, Support, TeacherTopK
from tutelage.losses.tokens import ResidualReverseKL, SampledReverseKL
from tutelage.policies import Student
from tutelage.rollout import PairedEngine
from tutelage.training.forms.terms import is_among
from tutelage.types import DenseTarget

P, Q = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.6, 0.1, 0.2, 0.1]], dtype=torch.float64)
REVERSE_KL = 0.1606


def of_token(
    loss: TokenLoss, token: int, p: Tensor = P, q: Tensor = Q, window: Support | None = None
) -> tuple[float, Tensor]:
    """Value and gradient in the student's logits where this token was drawn from p."""
    logits = p.log().clone().requires_grad_()
    logprobs, target = logits.log_softmax(-1)[None], DenseTarget(q.log()[None])
    window = window or loss.window
    seen = (None, None, None) if window is None else window.events_and_ids(logprobs, target)
    student_events, target_events, ids = seen
    drawn = torch.tensor([token])
    then, known = p.log()[drawn], q.log()[drawn]
    value = loss.on_tokens(
        logprobs[0, drawn],
        TokenFacts(
            then,
            then,
            known,
            known - then,
            torch.zeros(1),
            torch.zeros(1).bool(),
            student_events,
            target_events,
            is_inside=None if window is None else is_among(drawn, ids),
        ),
    )
    value.sum().backward()
    assert logits.grad is not None
    return float(value.detach()), logits.grad


def moments(loss: TokenLoss, p: Tensor = P, q: Tensor = Q) -> tuple[float, Tensor, float]:
    """Mean value, mean gradient and the trace of the gradient's covariance, over tokens of p."""
    found = [of_token(loss, token, p, q) for token in range(len(p))]
    values, gradients = torch.tensor([value for value, _ in found]).double(), torch.stack([each for _, each in found])
    mean = p @ gradients
    return float(p @ values), mean, float(p @ ((gradients - mean) ** 2).sum(-1))


def gradient_of(loss: ReverseKL) -> tuple[float, Tensor]:
    logits = P.log().clone().requires_grad_()
    value = loss(logits[None], Q.log()[None]).sum()
    value.backward()
    assert logits.grad is not None
    return float(value.detach()), logits.grad


RESIDUAL, SAMPLED = ResidualReverseKL(top_k=2), ResidualReverseKL(top_k=2, tail="sampled")


def test_worked_numbers() -> None:
    """p = (.5, .3, .15, .05), q = (.6, .1, .2, .1), S = {0, 2}, the teacher's top 2."""
    value, truth = gradient_of(ReverseKL(support="full"))
    torch.testing.assert_close(truth, torch.tensor([-0.1715, 0.2814, -0.0672, -0.0427]).double(), atol=5e-5, rtol=0)
    assert value == pytest.approx(REVERSE_KL, abs=5e-5)
    bucket_value, bucket = gradient_of(ReverseKL(support="teacher_top_k", top_k=2))
    torch.testing.assert_close(bucket, torch.tensor([-0.1219, 0.1494, -0.0524, 0.0249]).double(), atol=5e-5, rtol=0)
    assert bucket_value == pytest.approx(0.0616, abs=5e-5)
    traces = {}
    for name, loss in {"sampled": SampledReverseKL(), "hets": SAMPLED, "residual": RESIDUAL}.items():
        mean_value, mean, traces[name] = moments(loss)
        torch.testing.assert_close(mean, truth, atol=1e-12, rtol=0)
        assert mean_value == pytest.approx(value, abs=1e-7)
    assert traces == pytest.approx({"sampled": 0.2117, "hets": 0.2231, "residual": 0.1124}, abs=5e-5)


def test_a_union_counts_no_token_twice() -> None:
    """{0, 2} of the teacher and {0, 1} of the student are three tokens; token 3 is the tail: .1953 - .0347 = .1606."""
    head, whole = (ReverseKL(support="union_top_k", top_k=2, rest=rest) for rest in ("truncated", "tail"))
    value, total = (float(loss(P.log()[None], Q.log()[None]).sum()) for loss in (head, whole))
    assert value == pytest.approx(0.1953, abs=5e-5) and total - value == pytest.approx(-0.0347, abs=5e-5)


def test_the_identity_of_the_variances() -> None:
    """tr Cov(HETS) - tr Cov(ResOPD) = tau (1 - tau) (|m|^2 - |m - mu|^2), m the mean of the tail's own gradients."""
    score = torch.eye(4).double() - P
    shares, inside, tau = P * (P / Q).log(), torch.tensor([0, 2]), float(P[[1, 3]].sum())
    _, truth, _ = moments(SampledReverseKL())
    mean_of_tail = (truth - (shares[:, None] * score)[inside].sum(0)) / tau
    log_tail = torch.log(P[[1, 3]].sum() / Q[[1, 3]].sum())
    bucket = -log_tail * (P[:, None] * score)[inside].sum(0) / tau
    gain = tau * (1 - tau) * (mean_of_tail.square().sum() - (mean_of_tail - bucket).square().sum())
    assert float(gain) == pytest.approx(0.11071, abs=5e-6)
    assert moments(SAMPLED)[2] - moments(RESIDUAL)[2] == pytest.approx(float(gain), abs=1e-12)


@pytest.mark.parametrize("loss", [RESIDUAL, SAMPLED], ids=repr)
def test_a_token_inside_the_support_changes_nothing_and_equal_models_teach_nothing(loss: TokenLoss) -> None:
    one, other, outside = (of_token(loss, token) for token in (0, 2, 1))
    assert one[0] == other[0] != outside[0] and torch.equal(one[1], other[1]) and not torch.equal(one[1], outside[1])
    for token in range(4):
        value, gradient = of_token(loss, token, P, P)
        assert value == pytest.approx(0, abs=1e-12) and float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("window", [TeacherTopK(4), StudentTopK(4), UnionTopK(2)], ids=repr)
def test_a_support_that_holds_everything_leaves_nothing_to_the_token(window: Support) -> None:
    """The union of {0, 2} and {0, 1} leaves token 3, whose bucket is the token itself."""
    _, truth = gradient_of(ReverseKL(support="full"))
    for token in range(4):
        value, gradient = of_token(ResidualReverseKL(support=window.name, top_k=window.k), token)
        assert value == pytest.approx(REVERSE_KL, abs=5e-5)
        torch.testing.assert_close(gradient, truth, atol=1e-12, rtol=0)


def test_a_teacher_without_a_tail_stays_finite() -> None:
    certain = torch.tensor([0.75, 0.0, 0.25, 0.0], dtype=torch.float64)
    value, gradient = of_token(RESIDUAL, 0, P, certain)
    assert torch.isfinite(gradient).all() and 0 < value < 100


@pytest.mark.parametrize("loss", [RESIDUAL, SAMPLED], ids=repr)
def test_a_token_that_the_teacher_never_has_stays_finite(loss: TokenLoss) -> None:
    """It counts as e^-25; the mean gradient is that of such a teacher, which pushes the forbidden tokens down."""
    forbidden, floor = torch.tensor([0.75, 0.0, 0.25, 0.0], dtype=torch.float64), torch.tensor([1, 3])
    logits = P.log().clone().requires_grad_()
    student, target = logits.log_softmax(-1), forbidden.log().clamp_min(-25)
    (student.exp() * (student.detach() - target)).sum().backward()
    value, mean, _ = moments(loss, P, forbidden)
    torch.testing.assert_close(mean, logits.grad, atol=1e-12, rtol=0)
    assert 0 < value < 25 and all(float(mean[token]) > 0 for token in floor), "descent makes them less probable"
    then, known = P.log(), forbidden.log()
    facts = TokenFacts(then, then, known, known - then, torch.zeros(4), torch.zeros(4).bool(), None, None)
    assert loss.statistics(then, facts)["target_floor_share"].tolist() == [0, 1, 0, 1]


def test_the_control_variate_of_the_sampled_form() -> None:
    """log q - log p + KL(p || q) per token (vOPD, arXiv 2605.07865): mean 0 under p, variance .1935."""
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]], dtype=torch.float64)
    loss = SampledReverseKL(baseline="expected", support="full")
    score = torch.eye(3).double() - p
    advantages = torch.stack([(of_token(loss, v, p, q)[1] / -score[v])[v] for v in range(3)])
    torch.testing.assert_close(advantages, torch.tensor([0.4285, -0.3134, -0.6011]).double(), atol=5e-5, rtol=0)
    assert float(p @ advantages) == pytest.approx(0, abs=1e-12)
    assert float(p @ advantages**2) == pytest.approx(0.1935, abs=5e-5)


def test_models_give_the_same_estimate_however_its_support_is_found() -> None:
    """The student's own top K from the record and from whole distributions, in chunks and in tiles."""
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    engine = PairedEngine(student, make_model("qwen3", vocab_size=24, stop_ids=7, seed=2), support_size=3)
    made = engine.generate(Student(), [[1, 2, 3], [4]], max_new_tokens=8, num_samples=2)
    batch = rated(scored(engine.models, made))
    inside = [(r.support_ids == torch.tensor(r.response_tokens)[:, None]).any(-1) for r in made]
    assert {bool(each) for each in torch.cat(inside)} == {True, False}
    found = {}
    for form, chunk in itertools.product(("chunked", "tiled"), (None, 3)):
        engine.student.module.zero_grad()
        loss = objective_of(
            engine.models, ResidualReverseKL("student_top_k", 3), form=form, chunk_tokens=chunk
        ).backward(batch)
        weight = next(iter(engine.student.module.parameters())).grad
        assert weight is not None
        found[form, chunk] = (loss.loss, weight.clone())
    first = found["chunked", None]
    for value, gradient in found.values():
        assert value == pytest.approx(first[0], rel=1e-6)
        torch.testing.assert_close(gradient, first[1], rtol=1e-4, atol=1e-6)
