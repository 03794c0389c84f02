import itertools
import random

import pytest
import torch

from tests.support.rollouts import rollout_of
from tutelage.diagnostics import teacher_support_auroc
from tutelage.errors import DataError


def rollout(*gaps):
    """A rollout whose tokens have log q - log p = gaps."""
    student = torch.full((len(gaps),), -1.0)
    return rollout_of([0], [0] * len(gaps), student, student, {"teacher.logprobs_T": student + torch.tensor(gaps)})


def test_auroc_agrees_with_counting_pairs():
    generator = random.Random(0)
    for _ in range(50):
        num = generator.randint(2, 12)
        scores = [generator.choice([-2.0, -1.0, -0.5, 0.0, 0.5]) for _ in range(num)]  # many ties
        correct = [generator.random() < 0.5 for _ in range(num)]
        rollouts = [rollout(score, score) for score in scores]
        pairs = [
            1.0 if good > bad else 0.5 if good == bad else 0.0
            for (good, is_correct), (bad, is_too) in itertools.product(zip(scores, correct, strict=True), repeat=2)
            if is_correct and not is_too
        ]
        expected = sum(pairs) / len(pairs) if pairs else None
        assert teacher_support_auroc(rollouts, correct) == (None if expected is None else pytest.approx(expected))


def test_the_score_is_a_mean_over_tokens_not_a_sum():
    long_and_mild, short_and_bad = rollout(-0.5, -0.5, -0.5, -0.5), rollout(-1.0)
    assert teacher_support_auroc([long_and_mild, short_and_bad], [True, False]) == 1.0


def test_one_class_alone_has_no_ranking():
    assert teacher_support_auroc([rollout(0.0), rollout(1.0)], [True, True]) is None
    assert teacher_support_auroc([rollout(0.0)], [False]) is None
    assert teacher_support_auroc([], []) is None


def test_a_token_the_teacher_rules_out_ranks_last_and_an_empty_rollout_nowhere():
    ruled_out = rollout(float("-inf"), 3.0)
    assert teacher_support_auroc([ruled_out, rollout(-50.0)], [False, True]) == 1.0
    assert teacher_support_auroc([ruled_out, rollout(float("-inf"))], [False, True]) == 0.5
    assert teacher_support_auroc([rollout(), rollout(0.0), rollout(1.0)], [True, False, True]) == 1.0
    assert teacher_support_auroc([rollout(), rollout(0.0)], [True, False]) is None


def test_refuses_unscored_rollouts_and_wrong_lengths():
    unscored = rollout_of([0], [1], torch.zeros(1), torch.zeros(1), prompt_index=7)
    with pytest.raises(DataError, match="of prompt 7 has no teacher log-probabilities"):
        teacher_support_auroc([unscored, rollout(0.0)], [True, False])
    with pytest.raises(DataError, match="1 verdicts for 2 rollouts"):
        teacher_support_auroc([rollout(0.0), rollout(1.0)], [True])
