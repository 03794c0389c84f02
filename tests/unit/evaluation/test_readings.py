"""Repetition of answers that nobody has read, and the probability of given texts."""

from __future__ import annotations

import pytest
import torch

from tutelage.evaluation import TextSet
from tutelage.evaluation.readings import readings_of
from tutelage.types import Prompt, Rollout


def answer(tokens: list[int]) -> Rollout:
    return Rollout.answer_to(Prompt([1]), tokens, torch.full((len(tokens),), torch.nan))


def test_repetition_needs_no_teacher() -> None:
    # 5 of 4 tokens, of which 1 differs; 2 that differ; too short to have any.
    looping, varied, short = answer([7] * 8), answer([1, 2, 3, 4, 5]), answer([1, 2])
    assert readings_of([looping, varied, short]) == {"repeated_4grams": pytest.approx((4 / 5 + 0) / 2)}
    assert readings_of([short]) == readings_of([]) == {}


def test_log_probabilities_of_texts_are_per_token() -> None:
    texts = TextSet("written", True, [answer([1, 2, 3]), answer([4])])
    found = texts.result([-6.0, -1.0])
    assert (found.num_texts, found.num_tokens, found.logprob) == (2, 4, pytest.approx(-7 / 4))
    assert found.to_dict()["are_answers"] is True
