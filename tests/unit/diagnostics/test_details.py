import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.support.metrics import OF_BATCHES
from tests.support.rollouts import hand_made_rollouts, rollout_of
from tutelage.diagnostics import METRICS, POSITIONS, detail_metrics, rollout_metrics


def longest_common_stretch(tokens):
    """Of the answer with itself, further on: ends[j] tokens up to i and up to j > i are the same."""
    tokens = np.array(tokens)
    ends, longest = np.zeros(len(tokens) + 1, int), 0
    for i in range(len(tokens)):
        ends[1:] = np.where(tokens == tokens[i], ends[:-1] + 1, 0)
        longest = max(longest, int(ends[i + 2 :].max(initial=0)))
    return longest


def by_numpy(rollouts):
    """Every metric a second time, token by token."""
    kl = lambda p, q: float(np.sum(p * np.log(p / q)))  # noqa: E731
    values: dict[str, list[float]] = {}
    inside = []
    for rollout in rollouts:
        length = len(rollout)
        tokens = rollout.response_tokens
        for t in range(length):
            p = np.exp(rollout.student.support_logprobs_TK[t].double().numpy())
            q = np.exp(rollout.teacher.support_logprobs_TK[t].double().numpy())
            first = max(place for place in POSITIONS if place <= t)
            rest = math.exp(float(rollout.teacher.tail_logprobs_T[t]))
            values.setdefault(f"reverse_kl_at_{first}", []).append(kl(np.append(p, 1 - p.sum()), np.append(q, rest)))
            for name in ("student_entropy", "teacher_entropy"):
                values.setdefault(f"{name}_at_{first}", []).append(
                    float(rollout.tokenwise(name.replace("_", ".") + "_T")[t])
                )
            shared = rollout.support_is_shared[t].numpy()
            values.setdefault("overlap_mass_student", []).append(p[shared].sum())
            values.setdefault("overlap_mass_teacher", []).append(q[shared].sum())
            if shared.any():
                p, q = p[shared], q[shared]
                advantage = -kl(p / p.sum(), q / q.sum()) / len(p)
                values.setdefault("overlap_advantage", []).append(advantage)
                values.setdefault("overlap_advantage_teacher_weighted", []).append(np.mean(q * np.log(p / q)))
            if 0 < rollout.blend[t] < 1:
                inside.append(float(rollout.blend[t]))
        if length >= 4:
            grams = [tuple(tokens[t : t + 4]) for t in range(length - 3)]
            values.setdefault("repeated_4grams", []).append(1 - len(set(grams)) / len(grams))
            q = rollout.teacher_logprobs.double().numpy()
            drift = q[-(length // 4) :].mean() - q[: length // 4].mean()
            values.setdefault("teacher_logprob_drift", []).append(drift)
        values.setdefault("longest_repeat", []).append(longest_common_stretch(tokens))
    quartiles = np.quantile(inside, [0.25, 0.5, 0.75], method="inverted_cdf")
    names = ("blend_inside_quartile_1", "blend_inside_median", "blend_inside_quartile_3")
    return {name: float(np.mean(numbers)) for name, numbers in values.items()} | dict(
        zip(names, quartiles, strict=True)
    )


@pytest.mark.parametrize("lengths", [(1, 2, 3, 4, 5), (17, 70, 8), (1,), (4100, 3)])
def test_every_metric_agrees_with_plain_numpy(lengths):
    rollouts = hand_made_rollouts(lengths)
    rollouts[0].blend[:1] = 0.25
    found, expected = detail_metrics(rollouts), by_numpy(rollouts)
    assert found == pytest.approx(expected, abs=1e-6)  # the recorded float32 masses limit the student's tail
    step_metrics = set(rollout_metrics(rollouts, kl_radius=1.0, rewards=[1.0] * len(rollouts)))
    others = set(METRICS) - step_metrics - OF_BATCHES
    assert set(found) <= others and (lengths != (4100, 3) or set(found) == others), "none is left without its double"


def one_token(student, teacher, shared):
    p, q = torch.tensor([student]).log(), torch.tensor([teacher]).log()
    known = {"student.support_logprobs_TK": p, "teacher.logprobs_T": torch.zeros(1), "teacher.support_logprobs_TK": q}
    known |= {"teacher.tail_logprobs_T": (1 - q.exp().sum(-1)).log(), "support_is_shared": torch.tensor([shared])}
    return rollout_of([0], [1], torch.zeros(1), torch.zeros(1), known)


def test_both_overlap_advantages_by_hand():
    """On two shared tokens p = (.5, .3), q = (.4, .1): renormalised, their KL is .081441."""
    found = detail_metrics([one_token([0.5, 0.3, 0.15], [0.4, 0.1, 0.3], [True, True, False])])
    assert found["overlap_advantage"] == pytest.approx(-0.081441 / 2, abs=1e-6)
    expected = (0.4 * math.log(0.5 / 0.4) + 0.1 * math.log(0.3 / 0.1)) / 2
    assert found["overlap_advantage_teacher_weighted"] == pytest.approx(expected, abs=1e-6)
    assert found["overlap_mass_student"] == pytest.approx(0.8) and found["overlap_mass_teacher"] == pytest.approx(0.5)


def test_matched_models_have_no_advantage_to_gain():
    found = detail_metrics([one_token([0.5, 0.3], [0.5, 0.3], [True, True])])
    assert found["overlap_advantage"] == found["overlap_advantage_teacher_weighted"] == 0
    assert found["reverse_kl_at_0"] == pytest.approx(0, abs=1e-6)


def test_a_token_without_overlap_is_left_out_of_the_advantage_and_not_of_the_mass():
    with_overlap, without = one_token([0.5], [0.4], [True]), one_token([0.5], [0.1], [False])
    both, alone = detail_metrics([with_overlap, without]), detail_metrics([with_overlap])
    assert both["overlap_advantage_teacher_weighted"] == alone["overlap_advantage_teacher_weighted"]
    assert both["overlap_mass_student"] == pytest.approx(0.25)
    assert "overlap_advantage" not in detail_metrics([without])


def test_what_is_unknown_or_empty_is_left_out():
    unread = rollout_of([1], [5, 6], torch.zeros(2), torch.zeros(2))
    assert detail_metrics([unread]) == {"longest_repeat": 0.0}
    assert detail_metrics([]) == detail_metrics([dataclasses.replace(unread, response_tokens=[])]) == {}


def test_a_teacher_that_rules_tokens_out_makes_no_metric_infinite():
    rollouts = hand_made_rollouts((9, 5))
    rollouts[0].teacher.support_logprobs_TK[2, 0] = -math.inf
    rollouts[0].support_is_shared[2] = True
    rollouts[1].teacher.tail_logprobs_T[1] = -math.inf
    found = detail_metrics(rollouts)
    assert all(math.isfinite(value) for value in found.values())
    assert "overlap_advantage" not in found and "overlap_advantage_teacher_weighted" in found
