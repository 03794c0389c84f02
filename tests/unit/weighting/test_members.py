from __future__ import annotations

import math

import pytest
import torch

from tests.support.rollouts import make_rollouts, rollout_of
from tutelage.advantages import Constant
from tutelage.losses import TokenFacts
from tutelage.losses.tokens import SampledNLL
from tutelage.types import Batch
from tutelage.weighting import PositionDecay, Tip, TokenShare, Tropd, Uniform, recorded_kl


def records_of(entropies: list[float], divergences: list[float] | None = None) -> Batch:
    """One answer whose student puts mass p on one recorded token, the teacher q, so that KL is what it should be."""
    length = len(entropies)
    student, teacher = torch.full((length, 1), 0.5).double(), torch.full((length, 1), 0.5).double()
    for i, wanted in enumerate(divergences or [0.0] * length):
        # KL((.5, .5) || (q, 1 - q)) = -log(4 q (1 - q)) / 2
        teacher[i] = (1 - math.sqrt(1 - math.exp(-2 * wanted))) / 2
    nothing = torch.zeros(length)
    return Batch(
        [
            rollout_of(
                [0],
                [0] * length,
                nothing,
                nothing,
                {
                    "student.entropy_T": torch.tensor(entropies).double(),
                    "student.support_logprobs_TK": student.log(),
                    "teacher.logprobs_T": nothing,
                    "teacher.support_logprobs_TK": teacher.log(),
                    "teacher.tail_logprobs_T": (1 - teacher[:, 0]).log(),
                },
            )
        ]
    )


def kept(selector: str, share: float, records: Batch) -> list[int]:
    weights = Tip(selector=selector, share=share)(records)
    assert set(weights.tolist()) <= {0.0, 1.0}
    return weights.nonzero()[:, 0].tolist()


def test_recorded_kl_is_that_of_the_coarsened_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 40, 12, generator=generator)).log_softmax(-1)
    rollout = make_rollouts(lengths=(40,))[0]
    for size in (4, 12):
        ids = student.topk(size).indices
        tail = teacher.scatter(1, ids, -math.inf).logsumexp(-1)
        tail = tail.masked_fill(tail.isnan(), -math.inf)
        records = Batch(
            [
                rollout.with_tokenwise(
                    {
                        "student.support_logprobs_TK": student.gather(1, ids),
                        "teacher.support_logprobs_TK": teacher.gather(1, ids),
                        "teacher.tail_logprobs_T": tail,
                    }
                )
            ]
        )
        kept_p, kept_q = student.double().gather(1, ids).exp(), teacher.double().gather(1, ids).exp()
        p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1)[:, : 5 if size == 4 else 12] for x in (kept_p, kept_q))
        torch.testing.assert_close(recorded_kl(records, reverse=True), (p * (p / q).log()).sum(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(recorded_kl(records, reverse=False), (q * (q / p).log()).sum(1), atol=1e-5, rtol=0)


def test_an_infinite_kl_counts_as_the_largest() -> None:
    records = records_of([1.0, 1.0, 1.0], [0.1, 0.7, 0.3])
    records.rollouts[0].teacher.support_logprobs_TK[0] = -math.inf
    torch.testing.assert_close(recorded_kl(records, reverse=True), torch.tensor([0.7, 0.7, 0.3]).double())


def records_of_rows(rows: list[tuple[list[float], list[float]]], size: int) -> Batch:
    """One answer, with student and teacher of each token, whose first `size` words are the support."""
    p, q = (torch.tensor(each).double() for each in zip(*rows, strict=True))
    nothing = torch.zeros(len(rows))
    rollout = rollout_of(
        [0],
        [0] * len(rows),
        nothing,
        nothing,
        {
            "student.entropy_T": torch.ones(len(rows)).double(),
            "student.support_logprobs_TK": p[:, :size].log(),
            "teacher.logprobs_T": nothing,
            "teacher.support_logprobs_TK": q[:, :size].log(),
            "teacher.tail_logprobs_T": q[:, size:].sum(-1).log(),
        },
    )
    return Batch([rollout])


def test_a_tail_that_the_teacher_rules_out_is_infinitely_far() -> None:
    """And TIP keeps it first, also where all others are equal to the teacher."""
    flat, ruled_out = [0.25] * 4, ([0.4, 0.3, 0.2, 0.1], [0.6, 0.4, 0.0, 0.0])
    far = [0.1, 0.2, 0.3, 0.4]
    from_far = 0.25 * math.log(2.5) + 0.25 * math.log(1.25) + 0.5 * math.log(0.5 / 0.7)
    for other, largest, first_two in ((far, from_far, [1, 2]), (flat, 1.0, [0, 2])):
        records = records_of_rows([(flat, flat), (flat, other), ruled_out], size=2)
        reverse, forward = recorded_kl(records, reverse=True), recorded_kl(records, reverse=False)
        assert reverse[2].item() == pytest.approx(largest) == reverse.max().item()
        assert kept("soft_or", 0.67, records) == first_two
        assert forward[2].item() == pytest.approx(0.6 * math.log(1.5) + 0.4 * math.log(4 / 3))


def test_a_support_with_all_mass_has_no_tail_to_rule_out() -> None:
    """Its float32 sum may miss 1 by rounding."""
    records = records_of_rows([([0.5, 0.3, 0.2 - 2e-6], [0.6, 0.3, 0.1])], size=3)
    expected = 0.5 * math.log(5 / 6) + 0.2 * math.log(2)
    assert recorded_kl(records, reverse=True)[0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("share", "number"), [(0.29, 29), (0.5, 50), (0.005, 1), (0.019, 1), (0.021, 2), (1.0, 100)])
def test_tip_keeps_exactly_the_stated_number(share: float, number: int) -> None:
    entropies = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
    for selector in ("soft_or", "entropy", "q3"):
        assert len(kept(selector, share, records_of(entropies))) == number


def test_of_equal_scores_tip_keeps_the_earlier_tokens() -> None:
    for selector in ("soft_or", "entropy", "q3"):
        assert kept(selector, 0.5, records_of([0.7] * 2000)) == list(range(1000))


def test_soft_or_of_tip() -> None:
    """softor(.2, .7) = .76 stands between softor(.5, .5) = .75 and softor(.8, .0) = .8; softor(0, 0) = 0 comes last."""
    # A hundred middling tokens keep the 98th percentile from cutting into the ones that matter.
    entropies, divergences = [0.2, 0.5, 0.8, 0.0, 1.0, 1.0, 1.0], [0.7, 0.5, 0.0, 0.0, 0.0, 1.0, 0.3]
    records = records_of(entropies, divergences)
    scores = Tip().scores(records)
    expected = torch.tensor([0.76, 0.75, 0.8, 0.0, 1.0, 1.0, 1.0]).double()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert kept("soft_or", 5 / 7, records) == [0, 2, 4, 5, 6]


def test_selectors_of_tip_see_what_they_should() -> None:
    """Unsure and right, sure and wrong, sure and right, unsure and wrong."""
    records = records_of([1.0, 0.1, 0.1, 1.0], [0.05, 2.0, 0.01, 1.0])
    assert kept("entropy", 0.5, records) == [0, 3]
    assert kept("q3", 0.25, records) == [1]
    assert 2 not in kept("soft_or", 0.75, records)
    # Nothing to tell tokens apart by divergence: soft-or ranks as entropy does, and the other way round.
    entropies = torch.rand(50, generator=torch.Generator().manual_seed(1)).tolist()
    flat = records_of(entropies)
    assert kept("soft_or", 0.4, flat) == kept("entropy", 0.4, flat)
    divergences = [0.1 + entropy for entropy in entropies]
    by_divergence = kept("soft_or", 0.4, records_of([0.7] * 50, divergences))
    assert by_divergence == sorted(sorted(range(50), key=lambda i: -divergences[i])[:20])


def test_tip_clips_entropies_at_the_98th_percentile() -> None:
    entropies = [i / 100 for i in range(100)] + [50.0]
    scores = Tip().scores(records_of(entropies))
    assert scores[50].item() == pytest.approx(0.5 / 0.98)
    assert scores[98:].tolist() == [1, 1, 1]


def test_position_decay_halves() -> None:
    rollouts = make_rollouts(lengths=(3, 1, 2))
    weights = PositionDecay(half_life=2)(Batch(rollouts))
    assert weights.tolist() == pytest.approx([1, 2**-0.5, 0.5, 1, 1, 2**-0.5])
    assert PositionDecay(half_life=math.inf)(Batch(rollouts)).tolist() == [1] * 6
    assert torch.equal(Uniform()(Batch(rollouts)), torch.ones(6))


def test_the_mean_trust_is_one_minus_total_variation() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, generator=generator).double().log_softmax(-1)
    rollout = rollout_of([0], list(range(6)), student, student, {"teacher.logprobs_T": teacher})  # every token once
    trust = Tropd(acceptance="expected")(Batch([rollout]))
    mean = (student.exp() * trust).sum()
    torch.testing.assert_close(mean, 1 - (student.exp() - teacher.exp()).abs().sum() / 2)
    draws = torch.rand(20_000, 6, generator=generator, dtype=torch.float64)
    found = torch.stack([Tropd()(Batch([rollout]), draw) for draw in draws[:2000]]).mean(0)
    torch.testing.assert_close(found, trust, atol=0.04, rtol=0)
    assert (found[trust == 1] == 1).all()


def drawn_with(*logprobs: list[float]) -> Batch:
    return Batch([rollout_of([0], [0] * len(each), torch.tensor(each), torch.tensor(each)) for each in logprobs])


def chosen(weighting: TokenShare, batch: Batch) -> list[int]:
    return weighting(batch, torch.zeros(batch.num_tokens)).nonzero()[:, 0].tolist()


def test_the_least_probable_tokens_are_a_share_of_the_batch_or_of_each_answer() -> None:
    one, other = [-1.0, -5.0, -1.0, -0.1, -0.2], [-6.0, -7.0, -1.0, -5.5, -0.1]
    batch = drawn_with(one, other)
    assert chosen(TokenShare(), batch) == [5, 6]
    assert chosen(TokenShare(over="answer"), batch) == [1, 6]
    assert chosen(TokenShare(), drawn_with([-2.0, -3.0, -3.0, -1.0])) == [1], "at least one; of equals the first"
    assert chosen(TokenShare(share=1.0), batch) == list(range(10))


def test_a_random_share_looks_at_its_numbers_alone() -> None:
    batch = drawn_with([-9.0, -1.0, -1.0, -1.0, -1.0])
    uniforms = torch.tensor([0.9, 0.8, 0.1, 0.7, 0.6])
    assert TokenShare(chosen="random")(batch, uniforms).tolist() == [0, 0, 1, 0, 0]
    assert not TokenShare(chosen="random").looks_at_token and TokenShare().looks_at_token


def test_one_fixed_advantage_below_0_sharpens_where_rare_tokens_are_chosen() -> None:
    """Of all tokens its mean gradient is 0; of the rarest of p = (.5, .3, .2) alone the step is (.05, .03, -.08)."""
    p, size = torch.tensor([0.5, 0.3, 0.2]).double(), 0.5
    for sign, expected in ((-1, (0.05, 0.03, -0.08)), (1, (-0.05, -0.03, 0.08))):
        steps = []
        for token in range(3):
            logits = p.log().requires_grad_()
            loss = SampledNLL(Constant(sign * size))
            facts = TokenFacts(
                *[torch.zeros(1)] * 3, torch.tensor([sign * size]), torch.zeros(1), torch.zeros(1).bool()
            )
            loss.on_tokens(logits.log_softmax(-1)[token : token + 1], facts).sum().backward()
            assert logits.grad is not None
            steps.append(-logits.grad)
        torch.testing.assert_close(p @ torch.stack(steps), torch.zeros(3).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(p[2] * steps[2], torch.tensor(expected).double())
