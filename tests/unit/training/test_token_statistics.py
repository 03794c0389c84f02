"""What token losses report, computed again token by token from whole forwards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.groups import group_batch
from tests.support.objectives import objective_of
from tests.support.rollouts import rated
from tests.support.tiny_models import make_model
from tutelage.advantages import GroupReward
from tutelage.diagnostics import METRICS
from tutelage.losses import TokenLoss
from tutelage.losses.distributions import ReverseKL
from tutelage.losses.tokens import CISPO, AnchoredSurrogate, ClippedSurrogate, PolicyGradient, SampledReverseKL
from tutelage.policies import TrustRegion
from tutelage.rollout import PairedEngine
from tutelage.training.token_statistics import TokenStatistics, combined
from tutelage.types import Batch, Rollout

BY_REWARD = GroupReward(epsilon=0.0)


@pytest.fixture(scope="module")
def engine() -> PairedEngine:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    return PairedEngine(student, make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2))


@pytest.fixture(scope="module")
def batch(engine: PairedEngine) -> Batch:
    """Answers of a student that has moved since: its log-probabilities at the rollout were others."""
    made = engine.generate(TrustRegion(kl_radius=0.2), [[1, 2, 3], [4], [5, 6]], max_new_tokens=10, num_samples=2)
    generator = torch.Generator().manual_seed(0)
    moved = [
        rollout.with_tokenwise(
            {
                "student.logprobs_T": rollout.student_logprobs
                - 0.4 * torch.randn(len(rollout), generator=generator).to(rollout.student_logprobs)
            }
        )
        for rollout in made
    ]
    return rated(moved)


def tokens_of(engine: PairedEngine, batch: Batch) -> list[dict[str, float]]:
    """Every token's numbers, from plain forwards of the whole text."""
    groups: dict[int, list[float]] = {}
    for rollout, reward in zip(batch.rollouts, batch.rewards["reward"].tolist(), strict=True):
        groups.setdefault(rollout.prompt_index, []).append(reward)
    found = []
    for rollout, reward in zip(batch.rollouts, batch.rewards["reward"].tolist(), strict=True):
        group = groups[rollout.prompt_index]
        deviation = (sum((each - sum(group) / len(group)) ** 2 for each in group) / (len(group) - 1)) ** 0.5
        advantage = (reward - sum(group) / len(group)) / deviation if deviation else 0.0
        now, teacher = (logprobs(engine, model, rollout) for model in (engine.student, engine.teacher))
        drifts = [new - float(old) for new, old in zip(now, rollout.student_logprobs, strict=True)]
        for place, drift in enumerate(drifts):
            found.append(
                {
                    "advantage": advantage,
                    "drift": drift,
                    "answer": sum(drifts) / len(drifts),
                    "to_teacher": now[place] - teacher[place],
                    "correction": float(rollout.student_logprobs[place] - rollout.behaviour_logprobs[place]),
                }
            )
    return found


def logprobs(engine: PairedEngine, model: Any, rollout: Rollout) -> list[float]:
    text = torch.tensor([[*rollout.prompt_tokens, *rollout.response_tokens]])
    with torch.no_grad():
        logits_TV = model.module(input_ids=text).logits[0, len(rollout.prompt_tokens) - 1 : -1]
    read_TV = engine.vocabulary.shared_logits(logits_TV).log_softmax(-1)
    return [float(read_V[token]) for read_V, token in zip(read_TV, rollout.response_tokens, strict=True)]


def ratio(loss: TokenLoss, token: dict[str, float]) -> float:
    if isinstance(loss, AnchoredSurrogate):
        bound = loss.max_teacher_log_ratio
        teacher = min(max(token["to_teacher"], -bound), bound)
        return math.exp(loss.own_share * token["drift"] + (1 - loss.own_share) * teacher)
    return math.exp(token["answer" if getattr(loss, "ratio", "") == "sequence" else "drift"])


def expected_of(loss: TokenLoss, tokens: list[dict[str, float]]) -> dict[str, float]:
    pairs = [(ratio(loss, token), token["advantage"]) for token in tokens]
    share = lambda is_so: sum(is_so(w, a) for w, a in pairs) / len(pairs)  # noqa: E731
    if isinstance(loss, CISPO):
        found = {
            "clip_share_high": share(lambda w, a: w > loss.ratio_cap),
            "clip_share_low": share(lambda w, a: w < loss.ratio_floor),
        }
    else:
        assert isinstance(loss, ClippedSurrogate)
        found = {
            "clip_share_high": share(lambda w, a: a > 0 and w > 1 + loss.epsilon_high),
            "clip_share_low": share(lambda w, a: a < 0 and w < 1 - loss.epsilon_low),
        }
        if loss.dual_clip < math.inf:
            found["clip_share_dual"] = share(lambda w, a: a < 0 and w > loss.dual_clip)
    answers = [math.exp(token["answer"]) for token in tokens]
    found |= {"ratio_min": min(w for w, _ in pairs), "ratio_max": max(w for w, _ in pairs)}
    found |= {"sequence_ratio_min": min(answers), "sequence_ratio_max": max(answers)}
    weights = [min(math.exp(token["correction"]), loss.correction_cap) for token in tokens]
    found["correction_cut_share"] = sum(math.exp(t["correction"]) > loss.correction_cap for t in tokens) / len(tokens)
    found["correction_effective_share"] = sum(weights) ** 2 / len(weights) / sum(w * w for w in weights)
    return found


LOSSES: list[TokenLoss] = [
    ClippedSurrogate(BY_REWARD, epsilon_high=0.28),
    ClippedSurrogate(BY_REWARD, dual_clip=1.3, correction_cap=1.1),
    ClippedSurrogate(BY_REWARD, ratio="sequence", epsilon_low=0.05, epsilon_high=0.05),
    AnchoredSurrogate(BY_REWARD),
    CISPO(BY_REWARD, ratio_cap=1.4, ratio_floor=0.8),
]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_statistics_by_loops(engine: PairedEngine, batch: Batch, loss: TokenLoss) -> None:
    """In every form, in one pass and in many, alone and beside a divergence."""
    tokens = tokens_of(engine, batch)
    expected = expected_of(loss, tokens)
    assert expected["ratio_max"] > 1.2 and expected["clip_share_high"] + expected["clip_share_low"] > 0
    ways: list[dict[str, Any]] = [{}, {"micro_batch_tokens": 1}, {"chunk_tokens": 4}, {"form": "tiled"}]
    for way in ways:
        found = dict(objective_of(engine.models, loss, **way).backward(batch).statistics)
        by_difficulty = {name for name in found if name.startswith("advantage_")}
        assert by_difficulty and set(found) <= set(METRICS)
        assert {name: found[name] for name in found.keys() - by_difficulty} == pytest.approx(expected, rel=1e-4)
    beside = objective_of(engine.models, ReverseKL(), loss).backward(batch).statistics
    assert {name: beside[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_two_processes_report_the_batch_of_both(engine: PairedEngine, batch: Batch) -> None:
    whole = objective_of(engine.models, LOSSES[0]).backward(batch).statistics
    of_first: list[Any] = []
    objective = objective_of(engine.models, LOSSES[0])
    objective.backward(replace(batch, own=range(2)), gather=lambda items: of_first.extend(items) or items)
    second = replace(batch, own=range(2, len(batch.rollouts)))
    both = objective.backward(second, gather=lambda items: [*of_first, *items]).statistics
    assert of_first and both == pytest.approx(dict(whole), rel=1e-6)


def test_terms_are_pooled_and_others_report_nothing(engine: PairedEngine, batch: Batch) -> None:
    narrow, wide = ClippedSurrogate(BY_REWARD, epsilon_high=0.0), ClippedSurrogate(BY_REWARD, epsilon_high=9.0)
    shares = [
        objective_of(engine.models, *losses).backward(batch).statistics["clip_share_high"]
        for losses in ((narrow,), (wide,), (narrow, wide))
    ]
    assert shares[0] > 0 == shares[1] and shares[2] == pytest.approx(shares[0] / 2)
    assert objective_of(engine.models, ReverseKL()).backward(batch).statistics == {}
    assert objective_of(engine.models, SampledReverseKL()).backward(batch).statistics == {}


def test_corrections_by_hand() -> None:
    drifts = [0.5, -0.2, 1.0]
    batch = group_batch([1.0], [3], student=[-1.0] * 3, behaviour=[-1.0 - drift for drift in drifts])
    cut = PolicyGradient(correction="token_mask").batch_statistics(batch)
    left = [math.exp(0.5), math.exp(-0.2)]
    assert cut["correction_cut_share"] == pytest.approx(1 / 3)
    assert cut["correction_effective_share"] == pytest.approx(sum(left) ** 2 / 3 / sum(w * w for w in left))
    none = PolicyGradient(correction="sequence_mask").batch_statistics(batch)
    assert none == {"correction_cut_share": 1.0, "correction_effective_share": 0.0}
    same = group_batch([1.0, 0.0], [2, 1])
    untouched = PolicyGradient().batch_statistics(same)
    assert untouched == {"correction_cut_share": 0.0, "correction_effective_share": 1.0}
    assert PolicyGradient(correction="none").batch_statistics(batch) == {}


def test_updates_of_a_step_are_one_number() -> None:
    updates = [{"clip_share_low": 0.1, "ratio_max": 2.0, "ratio_min": 0.9}, {"clip_share_low": 0.3, "ratio_max": 1.0}]
    found = combined([*updates, {"ratio_min": 0.5}])
    assert found == pytest.approx({"clip_share_low": 0.2, "ratio_max": 2.0, "ratio_min": 0.5})
    statistics = TokenStatistics()
    statistics.add([("share", torch.tensor([True, False])), ("x_min", torch.tensor([3.0, 2.0]))])
    statistics.add([("share", torch.tensor([True])), ("x_min", torch.tensor([2.5]))])
    assert statistics.result(lambda items: items) == pytest.approx({"share": 2 / 3, "x_min": 2.0})
