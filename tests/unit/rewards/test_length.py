"""Rewards by length: DAPO's numbers, and the bounds."""

from __future__ import annotations

import pytest

from tests.support.rated_answers import answers_of
from tutelage.errors import ConfigurationError
from tutelage.rewards import Length, Overlong, Reward, Setting


def judged(reward: Reward, lengths: list[int], max_new_tokens: int = 100) -> list[float]:
    judge = reward.opened(Setting(max_new_tokens=max_new_tokens))
    values: list[float] = judge(answers_of(["x" * length for length in lengths])).tolist()
    return values


def test_overlong_answers_are_punished_as_by_dapo() -> None:
    assert judged(Overlong(20480, 4096), [1, 16384, 18432, 20480, 21000]) == [0, 0, -0.5, -1, -1]


def test_the_limit_is_the_runs_and_the_cache_a_fifth_of_it() -> None:
    assert judged(Overlong(), [0, 80, 90, 100]) == [0, 0, -0.5, -1]
    assert judged(Overlong(), [0, 1], max_new_tokens=1) == [0, -1]


def test_a_length_is_a_share_of_the_scale() -> None:
    assert judged(Length(), [0, 50, 100, 200]) == [0, 0.5, 1, 1]
    assert judged(Length(10), [5, 50]) == [0.5, 1]


@pytest.mark.parametrize("field", ["max_tokens", "cache_tokens"])
def test_numbers_of_tokens_are_1_or_more(field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"reward\.{field} is 0; expected 1 token or more"):
        Overlong(**{field: 0})


def test_a_cache_is_within_the_limit() -> None:
    with pytest.raises(
        ConfigurationError, match=r"cache_tokens is 200, more than the 100 tokens of reward\.max_tokens"
    ):
        Overlong(cache_tokens=200).check(Setting(max_new_tokens=100))
