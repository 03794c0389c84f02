"""Which of several answers to one problem is kept?  Rules over what is known of the answers; nothing is judged here.

Axis letters: N answers to the problem, S subsets of them, M answers in a subset, C columns of values.
"""

from __future__ import annotations

import difflib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation.best_of import best_of_weights

__all__ = ["SELECTIONS", "Candidates", "Selection", "selections_named", "subsets_of"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

# Subsets of one size that a rule without a closed form is averaged over; all of them, where there are no more.
MAX_SUBSETS = 256


@dataclass(frozen=True)
class Candidates:
    """N answers to one problem, and what is known of them.

    Fields:
      logprobs_N: log-probability of each whole answer under the policy that drew it, in nats.
      num_tokens_N: lengths, the stop token included.
      correct_N: the verifier's verdicts; None = there are none.
      rewards_N: None = nothing is rewarded.
      answers_N: equal numbers for equal final answers, -1 for a response without one; None = nobody compared them.
    """

    logprobs_N: Sequence[float]
    num_tokens_N: Sequence[int]
    correct_N: Sequence[bool] | None = None
    rewards_N: Sequence[float] | None = None
    answers_N: Sequence[int] | None = None

    def __post_init__(self) -> None:
        parts = (self.logprobs_N, self.num_tokens_N, self.correct_N, self.rewards_N, self.answers_N)
        lengths = {len(part) for part in parts if part is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise DataError(
                f"what is known of the candidates has the lengths {sorted(lengths)}; expected one length, at least "
                "1. Give every part one entry per answer."
            )

    def __len__(self) -> int:
        return len(self.num_tokens_N)


@dataclass(frozen=True)
class Selection(ABC):
    """A rule that keeps one of several answers. It is total; of equally good answers it keeps the first."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it reads beside lengths and log-probabilities: "correct", "rewards", "answers"."""

    @abstractmethod
    def chosen(self, candidates: Candidates, subsets_SM: Places) -> Places:
        """The place [S] that it keeps of each subset; places of a subset ascend."""

    def selected(self, candidates: Candidates) -> int:
        """The place that it keeps of all."""
        return int(self.chosen(candidates, np.arange(len(candidates))[None])[0])

    def expected(self, candidates: Candidates, values_NC: Floats, size: int, seed: Sequence[int]) -> Floats:
        """Mean values [C] of the answer that is kept of `size` fresh ones, unbiased: averaged over subsets.

        Args:
          values_NC: of each answer.
          size: M, at most N.
          seed: keys the subsets, where there are more than can be gone through.
        """
        kept_S = self.chosen(candidates, subsets_of(len(candidates), size, seed))
        mean: Floats = values_NC[kept_S].mean(axis=0)
        return mean


@dataclass(frozen=True)
class Ranking(Selection):
    """A rule that keeps the first answer of an order which does not depend on the other answers."""

    @abstractmethod
    def keys(self, candidates: Candidates) -> list[Floats]:
        """What the answers are ordered by, [N] each, the most important one first; more is better."""

    def order(self, candidates: Candidates) -> Places:
        """All places, the best one first."""
        order: Places = np.lexsort([-key for key in reversed(self.keys(candidates))])
        return order

    def ranks(self, candidates: Candidates) -> Places:
        """[N] rank of each place, from 0."""
        ranks = np.empty(len(candidates), dtype=np.intp)
        ranks[self.order(candidates)] = np.arange(len(candidates))
        return ranks

    def chosen(self, candidates: Candidates, subsets_SM: Places) -> Places:
        return _picked(subsets_SM, self.ranks(candidates)[subsets_SM].argmin(axis=1))

    def expected(self, candidates: Candidates, values_NC: Floats, size: int, seed: Sequence[int]) -> Floats:
        """As of any rule, over all subsets at once: see `best_of_weights`."""
        ascending = self.order(candidates)[::-1]
        mean: Floats = best_of_weights(len(candidates), size) @ values_NC[ascending]
        return mean


@dataclass(frozen=True)
class HighestReward(Ranking):
    """The highest reward: best-of-n."""

    needs = frozenset({"rewards"})

    def keys(self, candidates: Candidates) -> list[Floats]:
        return [_known(candidates.rewards_N, "rewards")]


@dataclass(frozen=True)
class Surprisal(Ranking):
    """The answer that is least, or most, expected of the policy that drew it.

    S(y) = -(1/T) sum_t log mu(y_t | y_<t)     (surprisal-guided selection, arXiv 2602.07670)

    The paper keeps the right answer with the highest S, and leaves open whether S is a mean or a sum, and what is kept
    if no answer is right. Here that is the answer with the highest reward; without rewards, the first one.

    Fields:
      highest: False = the most expected one, as selection by likelihood has it.
      per_token: False = the sum over the tokens, which prefers long answers.
      verified: only right answers are kept, if there is one.
    """

    highest: bool = True
    per_token: bool = True
    verified: bool = True

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"correct"} if self.verified else ())

    def keys(self, candidates: Candidates) -> list[Floats]:
        surprisal_N = -_known(candidates.logprobs_N, "log-probabilities")
        if self.per_token:
            surprisal_N = surprisal_N / np.maximum(1, candidates.num_tokens_N)
        liked_N = surprisal_N if self.highest else -surprisal_N
        if not self.verified:
            return [liked_N]
        correct_N = _known(candidates.correct_N, "verdicts")
        rewards_N = np.zeros(len(candidates)) if candidates.rewards_N is None else np.asarray(candidates.rewards_N)
        return [correct_N, np.where(correct_N > 0, liked_N, rewards_N)]


@dataclass(frozen=True)
class RewardAmongSurprising(Selection):
    """The highest reward among the `top` right answers of the highest surprisal (arXiv 2602.07670, "top3").

    With at least as many as there are right answers it is the right answer with the highest reward. If none is
    right, it is the answer with the highest reward.
    """

    needs = frozenset({"correct", "rewards"})
    top: int = 3

    def chosen(self, candidates: Candidates, subsets_SM: Places) -> Places:
        rewards_N, correct_N = _known(candidates.rewards_N, "rewards"), _known(candidates.correct_N, "verdicts") > 0
        ranks_SM = Surprisal().ranks(candidates)[subsets_SM]
        last_S = np.sort(ranks_SM, axis=1)[:, : self.top][:, -1]
        eligible_SM = (ranks_SM <= last_S[:, None]) & correct_N[subsets_SM]
        eligible_SM |= ~eligible_SM.any(axis=1, keepdims=True)
        return _picked(subsets_SM, np.where(eligible_SM, rewards_N[subsets_SM], -np.inf).argmax(axis=1))


@dataclass(frozen=True)
class Majority(Selection):
    """The final answer that most responses give (self-consistency, arXiv 2203.11171), in the first response that does.

    Of several that are given as often, it is the one given first. A response without a final answer has no vote.
    """

    needs = frozenset({"answers"})

    def chosen(self, candidates: Candidates, subsets_SM: Places) -> Places:
        answers_N = _known(candidates.answers_N, "compared answers").astype(np.intp)
        answers_SM = answers_N[subsets_SM]
        num_votes_SC = np.zeros((len(subsets_SM), answers_N.max(initial=0) + 1))
        rows_SM = np.broadcast_to(np.arange(len(subsets_SM))[:, None], answers_SM.shape)
        has_SM = answers_SM >= 0
        np.add.at(num_votes_SC, (rows_SM[has_SM], answers_SM[has_SM]), 1)
        votes_SM = np.where(has_SM, num_votes_SC[rows_SM, answers_SM.clip(min=0)], 0)
        return _picked(subsets_SM, votes_SM.argmax(axis=1))


SELECTIONS: dict[str, Selection] = {
    "reward": HighestReward(),
    "surprisal": Surprisal(),
    "surprisal_sum": Surprisal(per_token=False),
    "surprisal_top3": RewardAmongSurprising(),
    "least_surprisal": Surprisal(highest=False),
    "likelihood": Surprisal(highest=False, verified=False),
    "likelihood_sum": Surprisal(highest=False, per_token=False, verified=False),
    "majority": Majority(),
}

_MISSING = {
    "correct": "verdicts on the answers, and there are none. Set data.verifier, and data.answer_column to the column "
    "with the right answers",
    "answers": "a verifier that says which answers are equal, and there is none. Set data.verifier",
    "rewards": "rewards, and no run file with a [[reward]] is read. Add one to the run file, which `tutelage evaluate` "
    "reads with --run",
}


def selections_named(names: Iterable[str], known: Iterable[str], key: str) -> dict[str, Selection]:
    """The rules of these names.

    Args:
      known: what is known of answers, see `Selection.needs`.
      key: of the option that has the names, for messages.
    Raises:
      ConfigurationError: a name that is no rule's, or is there twice; or a rule that reads what is not known.
    """
    found: dict[str, Selection] = {}
    for name in names:
        if name not in SELECTIONS:
            nearest = difflib.get_close_matches(name, SELECTIONS, n=1)
            remedy = f"Did you mean {nearest[0]!r}?" if nearest else "Choose one of these."
            raise ConfigurationError(f"{key} names {name!r}; expected one of {', '.join(SELECTIONS)}. {remedy}")
        if name in found:
            raise ConfigurationError(f"{key} names {name!r} twice; expected every rule once. Drop one.")
        for need in sorted(SELECTIONS[name].needs - set(known)):
            raise ConfigurationError(f"{key} names {name!r}, which needs {_MISSING[need]}, or choose another rule.")
        found[name] = SELECTIONS[name]
    return found


def subsets_of(count: int, size: int, seed: Sequence[int]) -> Places:
    """[S, size] places of subsets of `count` things, ascending: all subsets, or where there are too many a random few.

    Args:
      seed: the same seed gives the same ones.
    """
    if math.comb(count, size) <= MAX_SUBSETS:
        return np.array(list(itertools.combinations(range(count), size)), dtype=np.intp)
    drawn = np.random.default_rng(seed).random((MAX_SUBSETS, count)).argpartition(size - 1, axis=1)[:, :size]
    return np.sort(drawn, axis=1)


def _picked(subsets_SM: Places, columns_S: Places) -> Places:
    picked: Places = subsets_SM[np.arange(len(subsets_SM)), columns_S]
    return picked


def _known(values_N: Sequence[float] | None, what: str) -> Floats:
    values = np.array([math.nan] if values_N is None else values_N, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"the {what} of the candidates are {values_N}; expected a finite number for each. Give them.")
    return values
