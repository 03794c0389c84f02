"""The choice of a draft's length: as many tokens per second as the costs and the acceptance allow."""

from __future__ import annotations

import pytest

from tests.support.enumerated import make_world
from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel
from tutelage.rollout import PairedEngine
from tutelage.rollout.decoding.draft_length import Continuation, Costs, DraftLength
from tutelage.rollout.decoding.forward_costs import judging_cost


def test_draft_lengths_that_cannot_work() -> None:
    for value in (0, -1, True, 2.5, "fast", None):
        with pytest.raises(ConfigurationError, match=r"rollout\.draft_length is .*; expected 'estimated'"):
            PairedEngine(make_model("qwen3"), draft_length=value)


class TestDraftLength:
    """The choice of the length: as many tokens per second as the costs and the acceptance allow."""

    @pytest.fixture
    def costs(self) -> Costs:
        student, teacher = make_world()
        return Costs(student, teacher, is_measured=True)

    def choice(self, costs: Costs, acceptance: float, most: int = 100) -> int:
        chooser = DraftLength(None, costs)
        chooser.continuation.num_going_on, chooser.continuation.num_judged = 1000 * acceptance, 1000.0
        return chooser.choose(8, most)

    def given(self, costs: Costs, student: float, teacher: float, per_token: float) -> None:
        for length in (1, 4, 8):
            costs.time(8, length, student * length, teacher + per_token * length)

    def test_tries_what_it_has_not_measured(self, costs: Costs) -> None:
        chooser = DraftLength(None, costs)
        tried = []
        for _ in range(3):
            tried.append(chooser.choose(8, 100))
            costs.time(8, tried[-1], 1.0, 1.0)
        assert sorted(tried) == [1, 4, 8]
        assert costs.untried(8) == [] and costs.untried(64) != []

    def test_does_not_draft_where_it_does_not_pay(self, costs: Costs) -> None:
        self.given(costs, student=1.0, teacher=0.0, per_token=1.0)  # a token costs the teacher as much as the student
        assert self.choice(costs, 0.95) == 1
        assert self.choice(costs, 0.3) == 1

    def test_drafts_far_where_reading_is_free(self, costs: Costs) -> None:
        self.given(costs, student=1.0, teacher=20.0, per_token=0.0)
        assert self.choice(costs, 0.99) == 16
        assert self.choice(costs, 0.2) in (1, 2, 3)
        assert self.choice(costs, 0.99, most=7) == 6

    @pytest.mark.parametrize("acceptance", [0.5, 0.8, 0.93, 0.98])
    @pytest.mark.parametrize(("student", "teacher", "per_token"), [(1, 5, 0), (1, 10, 0.5), (2, 3, 1), (1, 2.6, 0.3)])
    def test_is_the_best_of_all_lengths(
        self, costs: Costs, acceptance: float, student: float, teacher: float, per_token: float
    ) -> None:
        self.given(costs, student, teacher, per_token)

        def tokens_per_second(length: int) -> float:
            tokens = (1 - acceptance**length) / (1 - acceptance)
            return tokens / (length * student + teacher + length * per_token)

        best = max(tokens_per_second(length) for length in range(1, 17))
        assert tokens_per_second(self.choice(costs, acceptance)) > 0.98 * best

    def test_an_estimate_is_the_same_whatever_was_timed(self) -> None:
        student, teacher = make_world()
        costs = Costs(student, teacher, is_measured=False)
        before = [costs.of_round(8, length, 0.9) for length in range(1, 17)]
        self.given(costs, student=1.0, teacher=20.0, per_token=0.0)
        assert [costs.of_round(8, length, 0.9) for length in range(1, 17)] == before
        assert costs.untried(8) == []

    def test_a_large_vocabulary_makes_a_token_dear_and_drafts_short(self) -> None:
        """Refused drafts were drawn and judged in vain; a few hundred words count as overhead of the layers."""
        costs = []
        for size in (10, 1000, 150_000):
            student, teacher = (LanguageModel(make_model("qwen3", vocab_size=size, seed=seed)) for seed in (0, 1))
            costs.append(Costs(student, teacher, is_measured=False))
        assert [judging_cost(each._student, 8) for each in costs[:2]] == [0, 0]
        few, _, many = (self.choice(each, 0.9) for each in costs)
        assert many < few
        judging, whole = judging_cost(costs[2]._student, 8 * 8), costs[2].of_round(8, 8, 0.9)
        assert whole > judging > 0.5 * whole

    def test_the_share_follows_what_happens(self) -> None:
        continuation = Continuation()
        assert 0 < continuation.rate < 1
        for _ in range(200):
            continuation.count(60, 100)
        assert abs(continuation.rate - 0.6) < 0.01
        for _ in range(200):
            continuation.count(99, 100)
        assert continuation.rate > 0.95
