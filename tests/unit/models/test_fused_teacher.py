"""Several models as one teacher: their distribution, and that engine, scoring and loss all see the same one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.tiny_models import make_model
from tutelage.distributions import kl_divergence, normalise
from tutelage.divergences import ReverseKL
from tutelage.errors import ConfigurationError
from tutelage.models import DynamicFusion, FixedFusion, FusedTeacher, as_language_model
from tutelage.policies import Student, TrustRegion
from tutelage.rollout import PairedEngine
from tutelage.types import Batch, Prompt, Rollout


def three(seed: int = 0) -> list[Tensor]:
    """Large, tuned and base log-probabilities [6, 10]."""
    generator = torch.Generator().manual_seed(seed)
    base, change, large = torch.randn(3, 6, 10, generator=generator, dtype=torch.float64)
    return [normalise(x) for x in (large * 2, base * 2 + change, base * 2)]


def static(weight: float) -> FixedFusion:
    return FixedFusion((1.0, weight, -weight))


def test_static_fusion_is_a_shift_of_logits() -> None:
    large, tuned, base = three()
    for weight in (0.5, 1.0, 1.5):
        expected = (large + weight * (tuned - base)).log_softmax(-1)
        torch.testing.assert_close(static(weight)([large, tuned, base]), expected)
    assert torch.equal(static(0.0)([large, tuned, base]), large)
    torch.testing.assert_close(static(1.0)([base, tuned, base]), tuned)
    torch.testing.assert_close(static(1.5)([large, base, base]), large)
    half = FixedFusion((0.5, 0.5))([large, base])
    torch.testing.assert_close(half, ((large + base) / 2).log_softmax(-1))


def test_kl_to_the_large_model_grows_with_the_weight() -> None:
    parts = three()
    kls = torch.stack([kl_divergence(static(number / 10)(parts), parts[0]) for number in range(21)])
    assert (kls.diff(dim=0) >= -1e-12).all()


def test_dynamic_fusion_is_the_best_of_its_grid() -> None:
    large, tuned, base = three()
    candidates = torch.stack([static(number * 0.1)([large, tuned, base]) for number in range(21)])

    def kl(first: Tensor, second: Tensor) -> Tensor:
        return (first.exp() * (first - second)).sum(-1)

    miss = (kl(candidates, large) - kl(tuned, base)) ** 2 + (kl(large, candidates) - kl(base, tuned)) ** 2
    best = miss.argmin(0)
    assert len(set(best.tolist())) > 2, "the rows differ in what is best"
    torch.testing.assert_close(DynamicFusion()([large, tuned, base]), candidates[best, torch.arange(6)])


def test_dynamic_fusion_at_its_limits() -> None:
    large, tuned, base = three()
    torch.testing.assert_close(DynamicFusion()([base, tuned, base]), tuned)
    assert torch.equal(DynamicFusion()([large, base, base]), large), "of equals the smallest weight, 0"


def test_what_any_member_rules_out_is_impossible() -> None:
    parts = three()
    parts[2] = normalise(parts[2].index_fill(-1, torch.tensor([3]), -torch.inf))
    fused = static(1.0)(parts)
    assert (fused[:, 3] == -torch.inf).all() and not fused.isnan().any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedFusion((0.0, 0.0)), "expected finite numbers, not all 0"),
        (lambda: FixedFusion((1.0, float("inf"))), "expected finite numbers"),
        (lambda: DynamicFusion(2.0, 0.0), "tries nothing"),
        (lambda: FixedFusion((1.0,)).check(2), "2 models were given 1 weights"),
        (lambda: DynamicFusion().check(2), "fuses a large model, a tuned small one and its base; got 2"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.fixture(scope="module", params=["gemma2", "qwen3_5"])
def engine(request: pytest.FixtureRequest) -> PairedEngine:
    """A student, and three unlike models with stop ids and padding of their own as its teacher; one may be a hybrid."""
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    large = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2, hidden_size=48, head_dim=12)
    tuned = make_model("qwen3", vocab_size=24, stop_ids=8, seed=3)
    base = make_model(request.param, vocab_size=26, stop_ids=7, seed=4)
    members = [as_language_model(model, name) for model, name in ((large, "large"), (tuned, "tuned"), (base, "base"))]
    return PairedEngine(student, FusedTeacher(members, static(0.8)), draft_length=3)


def naive(engine: PairedEngine, rollout: Rollout) -> Tensor:
    """log q of the fused teacher after each prefix, from plain whole forwards and the formula."""
    total = 0.0
    for member, weight in zip(engine.teacher.members, (1.0, 0.8, -0.8), strict=True):
        prompt = rollout.tokens_for_teacher
        tokens = torch.tensor([[*prompt, *rollout.response_tokens]])
        logits = member.module(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
        logprobs = engine.vocabulary.shared_logits(logits).double().log_softmax(-1)
        total = total + weight * logprobs.masked_fill(logprobs == -torch.inf, -1e6 / weight)
    return total.log_softmax(-1)


@torch.no_grad()
def test_decoding_scoring_and_loss_hear_the_same_teacher(engine: PairedEngine) -> None:
    prompts = [Prompt([1, 2, 3]), Prompt([4], teacher_tokens=[9, 10]), Prompt([5, 6, 1, 2])]
    made = engine.generate(TrustRegion(0.2), prompts, max_new_tokens=12, num_samples=3)
    assert any(bool(rollout.replaced.any()) for rollout in made) and len({len(rollout) for rollout in made}) > 1
    scored = engine.score(engine.generate(Student(), prompts, max_new_tokens=12, num_samples=3))
    for rollout in [*made, *scored]:
        expected = naive(engine, rollout)
        tokens = torch.tensor(rollout.response_tokens)[:, None]
        is_hybrid = engine.teacher.cache_bytes_per_row > 0
        close = {"rtol": 1e-4, "atol": 1e-4} if is_hybrid else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(rollout.teacher_logprobs.double(), expected.gather(1, tokens)[:, 0], **close)
        support = expected.gather(1, rollout.support_ids.long())
        torch.testing.assert_close(rollout.teacher.support_logprobs_TK.double(), support, **close)
    with torch.enable_grad():
        losses = [
            objective_of(engine.models, divergence).backward(Batch(made)).loss
            for divergence in (ReverseKL(support="full"), ReverseKL(top_k=16))
        ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] >= losses[1] > 0


def test_members_are_counted_together(engine: PairedEngine) -> None:
    teacher = engine.teacher
    assert teacher.cache_bytes_per_slot == sum(member.cache_bytes_per_slot for member in teacher.members)
    assert teacher.cache_bytes_per_row == sum(member.cache_bytes_per_row for member in teacher.members)
    assert teacher.drafted_state_bytes(2, 4) == teacher.cache_bytes_per_row // 2 * 2 * 3
    assert teacher.context_length == min(member.context_length for member in teacher.members)
    assert engine.vocabulary.stop_ids == (7, 8)
