"""Sums of terms of all three kinds: forms agree, coefficients move, and a new member costs a class and a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.tiny_models import make_model
from tutelage.advantages import ADVANTAGES, Advantage, Constant
from tutelage.config.parts import losses_from
from tutelage.errors import ConfigurationError
from tutelage.kernels import Tiling
from tutelage.losses import (
    LAYER_LOSSES,
    LOSSES,
    PAIR_LOSSES,
    DistributionLoss,
    LayerLoss,
    Loss,
    PairFacts,
    PairLoss,
    TokenFacts,
    TokenLoss,
)
from tutelage.losses.distributions import ForwardKL, JensenShannon, ReverseKL
from tutelage.losses.pairs import DPO
from tutelage.losses.tokens import ResidualReverseKL, SampledNLL, SampledReverseKL
from tutelage.models import linearise
from tutelage.policies import Student, TrustRegion
from tutelage.rollout import PairedEngine, ReferenceScorer
from tutelage.rollout.reading import response_hidden
from tutelage.schedules import Linear
from tutelage.types import Batch, Fact, Rollout
from tutelage.weighting import Tip

FULL = {"support": "full"}


@pytest.fixture(scope="module")
def engine() -> PairedEngine:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    teacher = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2)
    return PairedEngine(student, teacher)


@pytest.fixture(scope="module")
def rollouts(engine: PairedEngine) -> list[Rollout]:
    return engine.generate(TrustRegion(kl_radius=0.2), [[1, 2, 3], [4], [5, 6]], max_new_tokens=10, num_samples=2)


def learned(engine: PairedEngine, batch: Batch, *losses: Loss, **settings: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradient by parameter."""
    module = engine.student.module
    module.zero_grad()
    loss = objective_of(engine.models, *losses, **settings).backward(batch).loss
    return loss, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_sum(whole: tuple[float, dict[str, Tensor]], parts: list[tuple[float, float, dict[str, Tensor]]]) -> None:
    assert whole[0] == pytest.approx(sum(factor * loss for factor, loss, _ in parts), rel=1e-7)
    for name, gradient in whole[1].items():
        expected = sum(factor * gradients[name] for factor, _, gradients in parts)
        # The modules' norms round to float32; that the sum itself is exact is tested on `kernels.tiled_loss`.
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-6)


SUMS: list[tuple[Loss, ...]] = [
    (ReverseKL(**FULL), SampledReverseKL()),
    (ReverseKL(**FULL, coefficient=0.3), SampledNLL(coefficient=-0.7)),
    (JensenShannon(**FULL, coefficient=0.5), ForwardKL(**FULL), SampledReverseKL(discount=0.5, coefficient=2.0)),
    (ReverseKL(top_k=4), SampledReverseKL(coefficient=0.1)),
    (SampledNLL(), SampledReverseKL()),
    (SampledReverseKL(top_k=4, baseline="expected"), ForwardKL(top_k=4, coefficient=0.2)),
    (ResidualReverseKL("student_top_k", 3), ReverseKL(top_k=3, coefficient=0.2)),
]


@pytest.mark.parametrize("losses", SUMS, ids=repr)
def test_a_sum_is_the_sum_of_its_terms_in_every_form(engine, rollouts, losses, monkeypatch) -> None:
    """In float64; the tiled forms take one pass through the head for all terms."""
    batch, settings = Batch(rollouts), {"weighting": Tip(share=0.7), "micro_batch_tokens": 40}
    alone = [learned(engine, batch, replace(loss, coefficient=1.0), form="chunked", **settings) for loss in losses]
    parts = [(loss.coefficient, *found) for loss, found in zip(losses, alone, strict=True)]

    def fitting(view, hidden_ND, entry_bytes, *, keeps, whole_rows=False):
        return Tiling(5, 10, keeps)

    monkeypatch.setattr(Tiling, "fitting", fitting)
    for form in ("chunked", "tiled", "recomputed"):
        if form == "recomputed" and isinstance(losses[0], JensenShannon):
            monkeypatch.undo()
        assert_sum(learned(engine, batch, *losses, form=form, **settings), parts)


def test_a_sum_over_the_vocabulary_reads_the_heads_once(engine, rollouts, monkeypatch) -> None:
    """As many products with the head as the divergence alone."""
    from tutelage.kernels.tiles import Head

    products, logits = [], Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, *given: products.append(None) or logits(self, *given))
    learned(engine, Batch(rollouts), ReverseKL(**FULL), form="tiled")
    alone = len(products)
    learned(engine, Batch(rollouts), ReverseKL(**FULL), SampledReverseKL(), form="tiled")
    assert len(products) == 2 * alone > 0


def test_a_coefficient_may_be_a_schedule_and_0_leaves_a_term_out(engine, rollouts) -> None:
    loss = ReverseKL(coefficient=Linear(1.0, 0.0, 2))
    assert [loss.at(step).factor for step in range(4)] == [1.0, 0.5, 0.0, 0.0]
    batch = Batch(rollouts)
    with_nothing = learned(engine, batch, SampledNLL(), loss.at(2))
    assert with_nothing[0] == learned(engine, batch, SampledNLL())[0]
    nothing = learned(engine, batch, loss.at(2))
    assert nothing[0] == 0 and all((gradient == 0).all() for gradient in nothing[1].values())
    wide = ReverseKL(**FULL, coefficient=Linear(1.0, 0.0, 2))
    for form in ("tiled", "recomputed"):  # which form there is follows from the terms that are left
        assert learned(engine, batch, SampledNLL(), wide.at(2), form=form)[0] == pytest.approx(
            with_nothing[0], rel=1e-9
        )
    with pytest.raises(ConfigurationError, match="loss.coefficient is inf; expected a finite number"):
        ReverseKL(coefficient=math.inf)


def test_losses_of_a_run_file(tmp_path) -> None:
    from tutelage.config import resolve_config

    table = {"student": "s", "teacher": "t", "data": "d"}
    coefficient = {"schedule": "linear", "start": 1.0, "stop": 0.0, "steps": 4}
    terms = [{"name": "reverse_kl", "coefficient": coefficient}, {"name": "sampled_nll", "advantage": "constant"}]
    config = resolve_config({**table, "loss": terms})
    assert losses_from(config) == (ReverseKL(coefficient=Linear(1.0, 0.0, 4)), SampledNLL(advantage=Constant()))
    assert losses_from(resolve_config(table)) == (ReverseKL(),)
    for wrong, message in (
        ({"name": "reverse_kl", "top_k": 0}, r"^loss\[0\]\.top_k is 0"),
        ({"name": "reverse"}, r"^loss\[0\]\.name is 'reverse'; expected one of"),
        ({"name": "sampled_nll", "advantage": "none"}, r"^loss\[0\]\.advantage\.name is 'none'; expected one of"),
        ({"name": "dpo", "beta": 0}, r"^loss\[0\]\.beta is 0"),
        (
            {"name": "sampled_nll", "advantage": {"name": "teacher_log_ratio", "discount": 2}},
            r"^loss\[0\]\.advantage\.discount is 2",
        ),
        (
            {"name": "cispo", "advantage": {"name": "sum", "terms": ["group_reward", {"name": "focal", "gamma": -1}]}},
            r"^loss\[0\]\.advantage\.terms\[1\]\.gamma is -1",
        ),
        (
            {"name": "cispo", "advantage": {"name": "sum", "terms": "group_reward"}},
            r"^loss\[0\]\.advantage\.terms is 'group_reward'; expected a list",
        ),
        (
            {"name": "cispo", "advantage": {"name": "sum", "terms": ["group_reward"], "coefficients": ["x"]}},
            r"^loss\[0\]\.advantage\.coefficients\[0\] is 'x'; expected a number or a schedule",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            losses_from(resolve_config({**table, "loss": [wrong]}))
    for key in ("coefficient", "beta"):  # named by the one key that the file has
        with pytest.raises(ConfigurationError, match=rf"^divergence\.{key} is -?inf"):
            losses_from(resolve_config({**table, "divergence": {"name": "dpo", key: math.inf}}))
    with pytest.raises(ConfigurationError, match=r"\[\[loss\]\] tables beside \[divergence\]"):
        resolve_config({**table, "loss": terms, "divergence": "reverse_kl"})


# --- pairs ------------------------------------------------------------------------------------------------------------


def with_reference(engine: PairedEngine, rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts as the student reads them now: a fixed reference."""
    return ReferenceScorer(replace(engine.models, reference=engine.student), 1000).score(rollouts)


def test_dpo_is_its_formula_and_learns_a_toy(engine) -> None:
    """Two answers to a prompt: log 2 at the reference, then the preferred one becomes more probable."""
    pair = PairedEngine(make_model("qwen3", vocab_size=24, stop_ids=7, seed=3), engine.teacher)
    student = pair.student
    made = with_reference(pair, pair.generate(Student(), [[1, 2, 3]], max_new_tokens=6, num_samples=2, seed=4))
    assert made[0].response_tokens != made[1].response_tokens
    batch = Batch(made, pairs=[(1, 0)])

    def margin() -> float:
        sums = []
        for rollout in made:
            hidden = response_hidden(student, [(rollout.prompt_tokens, rollout.response_tokens)])
            logprobs = pair.vocabulary.shared_logits(student.logits(hidden)).log_softmax(-1)
            own = logprobs.gather(1, torch.tensor(rollout.response_tokens)[:, None]).sum()
            sums.append(float(own.detach() - rollout.reference.logprobs_T.sum()))
        return sums[1] - sums[0]

    optimizer, losses = torch.optim.SGD(student.module.parameters(), 0.5), []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(objective_of(pair.models, DPO(beta=0.5)).backward(batch).loss)
        assert losses[-1] == pytest.approx(math.log1p(math.exp(-0.5 * margin())), rel=1e-6)
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2)) and losses[-1] < losses[1] < losses[0] and margin() > 0


def test_pairs_stay_together_and_beside_other_terms(engine, rollouts) -> None:
    made = with_reference(engine, rollouts)
    batch = Batch(made, pairs=[(0, 1), (3, 2), (4, 5)])
    dpo, kl = DPO(coefficient=0.5), ReverseKL(top_k=4)
    alone = [learned(engine, batch, replace(dpo, coefficient=1.0)), learned(engine, batch, kl)]
    for settings in ({}, {"micro_batch_tokens": 1}, {"chunk_tokens": 3}):
        assert_sum(learned(engine, batch, dpo, kl, **settings), [(0.5, *alone[0]), (1.0, *alone[1])])
    shared = [learned(engine, replace(batch, own=own), dpo, kl) for own in (range(2), range(2, 6))]
    assert_sum(learned(engine, batch, dpo, kl), [(1.0, *found) for found in shared])
    assert batch.units == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ConfigurationError, match="the loss DPO compares whole answers"):
        learned(engine, batch, dpo, form="tiled")


# --- a member of one's own: a class, and a line in a table ------------------------------------------------------------


@dataclass(frozen=True)
class SquaredGap(DistributionLoss):
    """Σ (p - q)²"""

    is_sum_over_events = True

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return (student_logprobs.exp() - target_logprobs.exp()).square().sum(-1)


@dataclass(frozen=True)
class Shorter(Advantage):
    """A token is worth 1 / length of its answer."""

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset()

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        return torch.cat([torch.full((length,), 1 / length) for length in batch.lengths])


@dataclass(frozen=True)
class Ratio(TokenLoss):
    """-A p / mu"""

    advantage: Advantage = SampledNLL().advantage

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        return -facts.advantages * (logprobs_n - facts.behaviour_logprobs).exp()


@dataclass(frozen=True)
class Hinge(PairLoss):
    """max(0, 1 - (log p(y_w) - log p(y_l)))"""

    def on_pairs(self, preferred_P: Tensor, rejected_P: Tensor, facts: PairFacts) -> Tensor:
        return (1 - (preferred_P - rejected_P)).clamp_min(0)


def test_a_member_of_ones_own_is_found_by_name_and_learns(engine, rollouts, monkeypatch) -> None:
    from tutelage.config import resolve_config

    for name, member in (("squared_gap", SquaredGap), ("ratio", Ratio), ("hinge", Hinge)):
        monkeypatch.setitem(LOSSES, name, member)
    monkeypatch.setitem(ADVANTAGES, "shorter", Shorter)
    terms = [
        {"name": "squared_gap", "support": "full"},
        {"name": "ratio", "advantage": {"name": "shorter"}},
        {"name": "hinge", "coefficient": 0.1},
    ]
    losses = losses_from(resolve_config({"student": "s", "teacher": "t", "data": "d", "loss": terms}))
    assert losses == (SquaredGap(support="full"), Ratio(advantage=Shorter()), Hinge(coefficient=0.1))
    batch = Batch(rollouts, pairs=[(0, 1)])
    alone = [learned(engine, batch, replace(loss, coefficient=1.0)) for loss in losses]
    parts = [(loss.coefficient, *found) for loss, found in zip(losses, alone, strict=True)]
    assert_sum(learned(engine, batch, *losses), parts)
    assert_sum(learned(engine, batch, *losses[:2], form="tiled"), parts[:2])


@dataclass(frozen=True)
class SquaredError(LayerLoss):
    """(Y - Ŷ)², summed over the width"""

    def on_layers(self, student_MNE: Tensor, teacher_MNE: Tensor) -> Tensor:
        return (student_MNE - teacher_MNE).square().sum(-1).mean(0)


def test_a_layer_loss_of_ones_own_is_found_by_name_and_learns(monkeypatch) -> None:
    """Beside other terms, in every form of theirs; its gradient is that of the layers alone."""
    from tutelage.config import resolve_config

    monkeypatch.setitem(LOSSES, "squared_error", SquaredError)
    terms = [{"name": "squared_error", "coefficient": 0.5}, {"name": "reverse_kl", "support": "full"}]
    losses = losses_from(resolve_config({"student": "s", "teacher": "t", "data": "d", "loss": terms}))
    assert losses == (SquaredError(coefficient=0.5), ReverseKL(**FULL))
    teacher = make_model("qwen3", vocab_size=24, stop_ids=7)
    engine = PairedEngine(linearise(teacher, (1,), feature_size=4).module, teacher)
    batch = Batch(engine.generate(Student(), [[1, 2, 3], [4]], max_new_tokens=8, num_samples=2))
    parts = [(loss.coefficient, *learned(engine, batch, replace(loss, coefficient=1.0))) for loss in losses]
    assert parts[0][2] and all("layers.1.linear_attn" in name for name in parts[0][2])
    for form in ("chunked", "tiled", "recomputed"):
        loss, gradient = learned(engine, batch, *losses, form=form, micro_batch_tokens=24)
        assert loss == pytest.approx(sum(factor * found for factor, found, _ in parts), rel=1e-5)
        for name, weight in gradient.items():
            expected = sum(factor * found[name] for factor, _, found in parts if name in found)
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


def test_every_layer_loss_is_zero_where_layers_agree() -> None:
    outputs_MNE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for member in LAYER_LOSSES.values():
        student_MNE = outputs_MNE.clone().requires_grad_()
        values_N = member().on_layers(student_MNE, outputs_MNE)
        assert values_N.tolist() == pytest.approx([0, 0, 0])
        member().on_layers(2 * student_MNE, outputs_MNE).sum().backward()
        assert student_MNE.grad is not None and (student_MNE.grad * outputs_MNE).sum() > 0


def test_every_pair_loss_prefers_the_preferred() -> None:
    facts = PairFacts(*(torch.full((1,), value).double() for value in (-5.0, -5.0, 3.0, 4.0)))
    for member in PAIR_LOSSES.values():
        preferred, rejected = (torch.full((1,), -5.0).double().requires_grad_() for _ in range(2))
        member().on_pairs(preferred, rejected, facts).sum().backward()
        assert preferred.grad.item() < 0 < rejected.grad.item()
