from __future__ import annotations

import math

import pytest
import torch

from tutelage.divergences import ForwardKL, FullVocabulary, ReverseKL, StudentTopK, reverse_kl
from tutelage.errors import ConfigurationError, ZeroMassError
from tutelage.losses import DISTRIBUTION_LOSSES, TOKEN_LOSSES, DistributionLoss
from tutelage.training.forms.chunked import in_chunks
from tutelage.types import DenseTarget, SparseTarget

# The worked example of arXiv 2604.13016's estimator: p, q and their values at k = 2.
P, Q = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.4, 0.1, 0.3, 0.2]).double()
INFINITY = float("inf")


def logits(shape: tuple[int, ...], seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sparse(target_logits: torch.Tensor, student_logits: torch.Tensor, k: int) -> SparseTarget:
    ids = student_logits.topk(k).indices
    log_q = target_logits.log_softmax(-1)
    tail = log_q.scatter(-1, ids, -INFINITY).logsumexp(-1)
    return SparseTarget(ids.int(), log_q.gather(-1, ids), tail)


def enumerated(p: torch.Tensor, q: torch.Tensor, support: FullVocabulary | StudentTopK) -> float:
    """The definition, in Python floats, for one position."""
    p, q = p.tolist(), q.tolist()
    if isinstance(support, StudentTopK):
        kept = sorted(range(len(p)), key=lambda i: -p[i])[: support.k]
        p_kept, q_kept = [p[i] for i in kept], [q[i] for i in kept]
        if support.rest == "renormalised":
            p, q = [x / sum(p_kept) for x in p_kept], [x / sum(q_kept) for x in q_kept]
        elif support.rest == "tail":
            p = [*p_kept, sum(x for i, x in enumerate(p) if i not in kept)]
            q = [*q_kept, sum(x for i, x in enumerate(q) if i not in kept)]
        else:
            p, q = p_kept, q_kept
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


SUPPORTS = [
    FullVocabulary(),
    *(StudentTopK(k, rest) for k in (1, 3, 16) for rest in ("tail", "renormalised", "truncated")),
]


def test_worked_numbers() -> None:
    value = reverse_kl(P.log(), Q.log(), StudentTopK(2, "renormalised"))
    assert value.item() == pytest.approx(0.081441, abs=1e-6)
    student = P.log().requires_grad_()
    reverse_kl(student, Q.log(), StudentTopK(2, "renormalised")).backward()
    torch.testing.assert_close(student.grad, torch.tensor([-0.205188, 0.205188, 0, 0]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
def test_value_and_gradient_against_enumeration(support) -> None:
    student, target = logits((4, 3, 9)).requires_grad_(), logits((4, 3, 9), seed=1)
    values = reverse_kl(student, target, support)
    assert values.shape == (4, 3)
    p, q = student.detach().softmax(-1), target.softmax(-1)
    for b in range(4):
        for t in range(3):
            assert values[b, t].item() == pytest.approx(enumerated(p[b, t], q[b, t], support), abs=1e-10)
    values.sum().backward()
    step = 1e-6
    for index in [(0, 0, 0), (1, 2, 5), (3, 1, 8), (2, 0, 4)]:
        ends = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved[index] += sign * step
            ends.append(enumerated(moved[index[:2]].softmax(-1), q[index[:2]], support))
        assert student.grad[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_full_gradient_is_the_known_formula() -> None:
    """d KL(p || q) / d logit_j = p_j (log p_j/q_j - KL)."""
    student, target = logits((7,)).requires_grad_(), logits((7,), seed=1)
    value = reverse_kl(student, target)
    value.backward()
    p, q = student.detach().softmax(-1), target.softmax(-1)
    torch.testing.assert_close(student.grad, p * ((p / q).log() - value.detach()))


@pytest.mark.parametrize("support", SUPPORTS[1:], ids=str)
def test_sparse_and_dense_targets_agree(support) -> None:
    student, target = logits((5, 20)), logits((5, 20), seed=1)
    from_dense = reverse_kl(student, DenseTarget(target), support)
    torch.testing.assert_close(reverse_kl(student, sparse(target, student, 16), support), from_dense)


def test_a_wider_record_serves_a_narrower_support() -> None:
    student, target = logits((5, 20)), logits((5, 20), seed=1)
    for rest in ("tail", "renormalised", "truncated"):
        support = StudentTopK(4, rest)
        torch.testing.assert_close(
            reverse_kl(student, sparse(target, student, 16), support), reverse_kl(student, target, support)
        )


def test_supports_relate_as_they_should() -> None:
    student, target = logits((50, 12)), logits((50, 12), seed=1)
    full = reverse_kl(student, target)
    previous = torch.zeros(50).double()
    for k in (1, 2, 4, 8, 11):
        tail = reverse_kl(student, target, StudentTopK(k, "tail"))
        assert (tail >= -1e-12).all() and (tail <= full + 1e-12).all()
        assert (tail >= previous - 1e-12).all(), "splitting an event cannot lower a KL"
        previous = tail
    for rest in ("tail", "renormalised", "truncated"):
        torch.testing.assert_close(reverse_kl(student, target, StudentTopK(12, rest)), full)
        torch.testing.assert_close(reverse_kl(student, student, StudentTopK(3, rest)), torch.zeros(50).double())
    assert (reverse_kl(student, target, StudentTopK(1, "renormalised")).abs() < 1e-12).all()
    peaked = torch.tensor([0.9, 0.05, 0.05]).log()
    assert reverse_kl(torch.tensor([0.4, 0.35, 0.25]).log(), peaked, StudentTopK(1, "truncated")) < 0, "not a KL"


def test_the_whole_vocabulary_as_support_has_a_finite_gradient() -> None:
    """The tail is empty, log 0, and must not turn the gradient into NaN."""
    student, target = logits((3, 6)).requires_grad_(), logits((3, 6), seed=1)
    reverse_kl(student, target, StudentTopK(16, "tail")).sum().backward()
    expected = student.detach().clone().requires_grad_()
    reverse_kl(expected, target).sum().backward()
    torch.testing.assert_close(student.grad, expected.grad)


def test_impossible_tokens() -> None:
    """Where both rule a token out it contributes nothing; where only the target does, the divergence is infinite."""
    student, target = logits((2, 8)), logits((2, 8), seed=1)
    student[:, 3], target[:, 3] = -INFINITY, -INFINITY
    leaf = student.requires_grad_()
    value = reverse_kl(leaf, target)
    value.sum().backward()
    assert value.isfinite().all() and leaf.grad.isfinite().all()
    target[0, 4] = -INFINITY
    assert reverse_kl(student.detach(), target)[0] == INFINITY


def test_no_gradient_reaches_the_target() -> None:
    student, target = logits((2, 8)).requires_grad_(), logits((2, 8), seed=1).requires_grad_()
    reverse_kl(student, target).sum().backward()
    assert target.grad is None and student.grad.abs().sum() > 0


def test_zero_mass_on_the_support_is_an_error_and_not_nan() -> None:
    student = logits((2, 8))
    target = logits((2, 8), seed=1)
    target[1].scatter_(0, student[1].topk(2).indices, -INFINITY)
    with pytest.raises(ZeroMassError, match="target has no mass at all on the student's top-2"):
        reverse_kl(student, target, StudentTopK(2, "renormalised"))
    assert reverse_kl(student, target, StudentTopK(2, "tail"))[1] == INFINITY


def test_bfloat16_logits_are_compared_in_float32() -> None:
    student, target = logits((3, 50)).bfloat16(), logits((3, 50), seed=1).bfloat16()
    value = reverse_kl(student, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, reverse_kl(student.float(), target.float()))


def test_chunks_equal_the_whole_and_never_hold_more() -> None:
    """Same values and gradients as the plain form, while the head never sees more than a chunk of tokens."""
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 30, bias=False).double()
    hidden, target = torch.randn(25, 6).double(), logits((25, 30), seed=1)
    divergence = ReverseKL(top_k=5)
    seen: list[int] = []

    def per_token(hidden_nD: torch.Tensor, span: slice) -> dict[str, torch.Tensor]:
        seen.append(len(hidden_nD))
        return {"divergence": divergence(head(hidden_nD), DenseTarget(target[span]))}

    results = []
    for chunk in (25, 4):
        leaf = hidden.clone().requires_grad_()
        head.weight.grad = None
        values = in_chunks(per_token, leaf, chunk)["divergence"]
        (values * torch.arange(25)).sum().backward()
        results.append((values.detach(), leaf.grad, head.weight.grad))
    assert max(seen[2:]) == 4 and len(seen) == 2 + 2 * 7, "each chunk is computed again in backward"
    plain = divergence(head(hidden), DenseTarget(target))
    torch.testing.assert_close(results[0][0], plain.detach())
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 0}, "divergence.top_k is 0"),
        ({"rest": "forget"}, "divergence.rest is 'forget'; expected one of tail, renormalised, truncated"),
        ({"support": "teacher"}, "divergence.support is 'teacher'"),
    ],
)
def test_bad_fields_are_refused(fields, message) -> None:
    for member in {**DISTRIBUTION_LOSSES, **TOKEN_LOSSES}.values():
        if not hasattr(member, "support"):
            continue
        with pytest.raises(ConfigurationError, match=message):
            member(**fields)


def test_mismatched_targets_are_refused() -> None:
    student = logits((2, 30))
    record = sparse(student, student, 4)
    with pytest.raises(ConfigurationError, match="known on a top-k support only"):
        reverse_kl(student, record)
    with pytest.raises(ConfigurationError, match="the rollouts kept 4 tokens"):
        reverse_kl(student, record, StudentTopK(8))


def test_defaults_are_the_stated_ones() -> None:
    assert ReverseKL() == ReverseKL(support="student_top_k", top_k=16, rest="tail")


def test_what_the_student_never_says_it_hardly_learns_this_way_round() -> None:
    """p = (1e-6, 1 - 1e-6), q = (.99, .01): the forward KL pulls 54,000 times as hard (arXiv 2610.09639)."""
    p, q = torch.tensor([[1e-6, 1 - 1e-6], [0.99, 0.01]], dtype=torch.float64)
    found = []
    for loss in (ReverseKL(support="full"), ForwardKL(support="full")):
        logits = p.log().requires_grad_()
        loss(logits[None], q.log()[None]).sum().backward()
        assert logits.grad is not None
        found.append(float(logits.grad[0]))
    assert found == pytest.approx([-1.84e-5, -0.99], rel=2e-3) and found[1] / found[0] == pytest.approx(
        54_000, rel=0.01
    )


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(ReverseKL(support="full"), (0.998, 0.001, 0.001)), (ForwardKL(support="full"), (0.6, 0.2, 0.2))],
    ids=repr,
)
def test_several_teachers_leave_one_mode_or_all_of_them(loss: DistributionLoss, expected: tuple[float, ...]) -> None:
    """Minima over p of the mean KL to q_1 = (.6, .4, 0+) and q_2 = (.6, 0+, .4): the modes that both allow, or all."""
    tiny = 1e-6
    teachers = torch.tensor([[0.6, 0.4 - tiny, tiny], [0.6, tiny, 0.4 - tiny]], dtype=torch.float64)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([logits], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def cost() -> torch.Tensor:
        search.zero_grad()
        value = loss(logits.expand(2, -1), teachers.log()).mean()
        value.backward()
        return value

    search.step(cost)
    torch.testing.assert_close(logits.softmax(-1).detach(), torch.tensor(expected).double(), atol=1e-3, rtol=0)
