"""How good is the answer that is kept of several?  For every rule and number of samples, from marked samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tutelage.evaluation.forecast import MIN_FORECAST_SAMPLES, Forecast, forecast_best_of, forecast_pass_at_k
from tutelage.evaluation.selection import Candidates, Selection
from tutelage.evaluation.statistics import bootstrap_interval

__all__ = ["SelectedResult", "forecasts_of", "powers_of_two", "summarise_selected"]


@dataclass(frozen=True)
class SelectedResult:
    """What one rule gives, on average over problems.

    Fields:
      rule: its name.
      num_samples: of how many answers one is kept.
      pass_rate: share of kept answers that are right, in [0, 1].
      pass_rate_interval: 95% bootstrap interval of it over problems.
      mean_response_tokens: mean length of a kept answer.
      mean_reward: of the kept answers; None = nothing was rewarded.
    """

    rule: str
    num_samples: int
    pass_rate: float
    pass_rate_interval: tuple[float, float]
    mean_response_tokens: float
    mean_reward: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON would give them back."""
        return asdict(self) | {"pass_rate_interval": list(self.pass_rate_interval)}


def summarise_selected(
    candidates_P: Sequence[Candidates], rules: Mapping[str, Selection], *, seed: int
) -> tuple[SelectedResult, ...]:
    """Every rule for 1, 2, 4, ... samples up to as many as there are; unbiased for so many fresh samples.

    Args:
      candidates_P: of each problem, as many for each, with verdicts.
      seed: keys the random subsets that rules without a closed form are averaged over.
    """
    found = []
    for name, rule in rules.items():
        for size in powers_of_two(len(candidates_P[0])):
            means_PC = np.array(
                [
                    rule.expected(candidates, _columns(candidates), size, (seed, size, place))
                    for place, candidates in enumerate(candidates_P)
                ]
            )
            pass_rate, length, *reward = means_PC.mean(axis=0).tolist()
            interval = bootstrap_interval(means_PC[:, 0])
            found.append(SelectedResult(name, size, pass_rate, interval, length, *reward))
    return tuple(found)


def forecasts_of(candidates_P: Sequence[Candidates], up_to: int, *, with_rewards: bool) -> tuple[Forecast, ...]:
    """pass@k, and where asked for the reward of best-of-k, for the powers of two above the number of samples.

    Args:
      up_to: the last of them; 0 = none.
      with_rewards: forecast rewards too, for which 4 samples are needed; fewer give none.
    """
    num_samples = len(candidates_P[0])
    correct_P = np.array([np.sum(_columns(candidates)[:, 0]) for candidates in candidates_P], dtype=np.int64)
    sizes = [size for size in powers_of_two(up_to) if size > num_samples]
    found = [forecast_pass_at_k(num_samples, correct_P, size) for size in sizes]
    if with_rewards and num_samples >= MIN_FORECAST_SAMPLES:
        rewards_PG = np.array([candidates.rewards_N for candidates in candidates_P], dtype=np.float64)
        found += [forecast_best_of(rewards_PG, size) for size in sizes]
    return tuple(found)


def powers_of_two(up_to: int) -> list[int]:
    """1, 2, 4, ... up to a number of at least 1."""
    return [2**power for power in range(up_to.bit_length())]


def _columns(candidates: Candidates) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Verdict, length and, if there is one, reward of each answer, [N, C]."""
    assert candidates.correct_N is not None, "candidates of an evaluation have verdicts"
    rewards = [] if candidates.rewards_N is None else [candidates.rewards_N]
    return np.array([candidates.correct_N, candidates.num_tokens_N, *rewards], dtype=np.float64).T
