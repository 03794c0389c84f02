import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.support.metrics import OF_BATCHES
from tests.support.rollouts import KL_RADIUS, hand_made_rollouts, rollout_of
from tutelage.diagnostics import METRICS, detail_metrics, rollout_metrics
from tutelage.errors import DataError


def by_numpy(rollouts, rewards):
    """Every metric a second time, token by token."""
    tokens = [
        {name: float(rollout.tokenwise(path)[t]) for name, path in PER_TOKEN_FIELDS.items()}
        for rollout in rollouts
        for t in range(len(rollout))
    ]
    mean = lambda per_token: float(np.mean([per_token(token) for token in tokens]))  # noqa: E731
    return {
        "behaviour_logprob": mean(lambda t: t["behaviour_logprobs"]),
        "student_logprob": mean(lambda t: t["student_logprobs"]),
        "teacher_logprob": mean(lambda t: t["teacher_logprobs"]),
        "reference_logprob": mean(lambda t: t["reference_logprobs"]),
        "sampled_reference_kl": mean(lambda t: t["student_logprobs"] - t["reference_logprobs"]),
        "sampled_reverse_kl": mean(lambda t: t["student_logprobs"] - t["teacher_logprobs"]),
        "student_entropy": mean(lambda t: t["student_entropy"]),
        "teacher_entropy": mean(lambda t: t["teacher_entropy"]),
        "entropy_gap": mean(lambda t: abs(t["teacher_entropy"] - t["student_entropy"])),
        "blend_mean": mean(lambda t: t["blend"]),
        "blend_share_zero": mean(lambda t: t["blend"] == 0),
        "blend_share_one": mean(lambda t: t["blend"] == 1),
        "blend_share_inside": mean(lambda t: 0 < t["blend"] < 1),
        "kl_used": mean(lambda t: t["kl_to_student"]),
        "kl_used_share": mean(lambda t: t["kl_to_student"] / KL_RADIUS),
        "sequence_kl": float(np.mean([rollout.kl_to_student.double().numpy().sum() for rollout in rollouts])),
        "replaced_share": mean(lambda t: t["replaced"]),
        "acceptance_rate": mean(lambda t: t["replaced"] == 0),
        "tokens_per_teacher_forward": len(tokens) / sum(rollout.teacher_forwards for rollout in rollouts),
        "support_mass_student": mean(lambda t: t["support_mass"]),
        "support_mass_teacher": mean(lambda t: 1 - math.exp(t["teacher_tail_logprobs"])),
        "support_overlap": mean(lambda t: t["support_overlap"]),
        "response_tokens": float(np.mean([len(rollout) for rollout in rollouts])),
        "stopped_share": float(np.mean([rollout.finished for rollout in rollouts])),
        "truncated_share": float(np.mean([not rollout.finished for rollout in rollouts])),
        "teacher_support": float(
            np.mean([(r.teacher_logprobs.double() - r.student_logprobs.double()).numpy().mean() for r in rollouts])
        ),
        "reward": float(np.mean(rewards)),
        "vllm_logprob_mismatch": mean(lambda t: abs(t["behaviour_logprobs"] - t["rescored_logprobs"])),
        "vllm_logprob_mismatch_max": max(abs(t["behaviour_logprobs"] - t["rescored_logprobs"]) for t in tokens),
    }


PER_TOKEN_FIELDS = {
    "student_logprobs": "student.logprobs_T",
    "student_entropy": "student.entropy_T",
    "teacher_logprobs": "teacher.logprobs_T",
    "teacher_entropy": "teacher.entropy_T",
    "teacher_tail_logprobs": "teacher.tail_logprobs_T",
    "reference_logprobs": "reference.logprobs_T",
    "support_mass": "support_mass",
    "support_overlap": "support_overlap",
    **{name: name for name in ("behaviour_logprobs", "blend", "kl_to_student", "replaced", "rescored_logprobs")},
}


def test_every_metric_agrees_with_plain_numpy():
    rollouts, rewards = hand_made_rollouts(), [1.0, 0.0, 0.0, 1.0, 0.5]
    assert rollout_metrics(rollouts, kl_radius=KL_RADIUS, rewards=rewards) == pytest.approx(
        by_numpy(rollouts, rewards), abs=1e-12
    )


def test_every_key_is_in_the_table_and_the_table_has_no_other():
    keys = rollout_metrics(hand_made_rollouts(), kl_radius=KL_RADIUS, rewards=[0.0] * 5)
    details = detail_metrics(hand_made_rollouts(lengths=(5000, 3)))
    assert not set(keys) & set(details)
    assert not OF_BATCHES & (set(keys) | set(details))
    assert set(keys) | set(details) | OF_BATCHES == set(METRICS)
    for unit, definition in METRICS.values():
        assert unit and definition and "\n" not in definition


def test_what_is_unknown_is_left_out():
    plain = [rollout_of([1], [5, 6], torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -3.0]))]
    assert rollout_metrics(plain) == {
        "behaviour_logprob": -1.5,
        "student_logprob": -2.0,
        "response_tokens": 2.0,
        "stopped_share": 0.0,
        "truncated_share": 1.0,
    }


def test_a_metric_needs_its_input_from_every_rollout():
    rollouts = hand_made_rollouts()
    rollouts[1] = dataclasses.replace(rollouts[1], teacher=None, blend=None)
    missing = {"teacher_logprob", "teacher_entropy", "entropy_gap", "sampled_reverse_kl", "teacher_support"}
    missing |= {"support_mass_teacher"}
    missing |= {"blend_mean", "blend_share_zero", "blend_share_one", "blend_share_inside"}
    assert set(rollout_metrics(hand_made_rollouts())) - set(rollout_metrics(rollouts)) == missing


@pytest.mark.parametrize("kl_radius", [None, 0.0])
def test_without_a_radius_no_share_of_it_is_used(kl_radius):
    metrics = rollout_metrics(hand_made_rollouts(), kl_radius=kl_radius)
    assert "kl_used" in metrics and "kl_used_share" not in metrics


def test_empty_responses_count_as_rollouts_but_not_as_tokens():
    rollouts = hand_made_rollouts(lengths=(2, 3))
    nothing = torch.zeros(0)
    known = {path: nothing for path in PER_TOKEN_FIELDS.values() if not path.startswith(("student", "support"))}
    known |= {"student.entropy_T": nothing, "student.support_logprobs_TK": torch.zeros(0, 2)}
    empty = rollout_of([1], [], nothing, nothing, known | {"support_is_shared": torch.zeros(0, 2).bool()})
    with_empty, without = rollout_metrics([*rollouts, empty]), rollout_metrics(rollouts)
    assert with_empty["teacher_logprob"] == without["teacher_logprob"]
    assert with_empty["response_tokens"] == pytest.approx(5 / 3)
    assert with_empty["sequence_kl"] == pytest.approx(without["sequence_kl"] * 2 / 3)
    assert set(rollout_metrics([empty])) == {"response_tokens", "stopped_share", "truncated_share"}
    assert rollout_metrics([]) == {}


def test_no_metric_is_ever_nan_or_infinite():
    rollouts = hand_made_rollouts()
    rollouts[2].teacher_logprobs[1] = float("-inf")
    rollouts[2].student.entropy_T[0] = float("nan")
    metrics = rollout_metrics(rollouts, kl_radius=KL_RADIUS)
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"teacher_logprob", "sampled_reverse_kl", "student_entropy"}.isdisjoint(metrics)


def test_low_precision_fields_are_averaged_in_float64():
    rollouts = hand_made_rollouts()
    for rollout in rollouts:
        rollout.blend = torch.full((len(rollout),), 0.9, dtype=torch.bfloat16)
    assert rollout_metrics(rollouts)["blend_mean"] == float(torch.tensor(0.9, dtype=torch.bfloat16))


def test_one_reward_per_rollout():
    with pytest.raises(DataError, match="2 rewards for 5 rollouts"):
        rollout_metrics(hand_made_rollouts(), rewards=[1.0, 0.0])


def test_sampled_reverse_kl_is_kl_to_teacher_less_kl_to_student_under_any_policy():
    """On one prefix, by exact expectation; at mu = p the right side is KL(p || q)."""
    p, q, mu = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5]), np.array([0.517441, 0.327899, 0.154660])
    kl = lambda a, b: float(np.sum(a * np.log(a / b)))  # noqa: E731

    def expected_metric(weights):
        per_token = [
            rollout_metrics(
                [
                    rollout_of(
                        [0],
                        [token],
                        torch.tensor([0.0]),
                        torch.tensor([p[token]]).log(),
                        {"teacher.logprobs_T": torch.tensor([q[token]]).log()},
                    )
                ]
            )["sampled_reverse_kl"]
            for token in range(3)
        ]
        return float(np.dot(weights, per_token))

    assert expected_metric(p) == pytest.approx(kl(p, q), abs=1e-6)
    assert expected_metric(mu) == pytest.approx(kl(mu, q) - kl(mu, p), abs=1e-6)
    assert expected_metric(mu) < kl(p, q)
