"""Which answer every rule keeps, and what that is worth on average."""

import itertools

import numpy as np
import pytest

from tutelage.errors import ConfigurationError, DataError
from tutelage.evaluation import SELECTIONS, Candidates, selections_named, summarise_selected
from tutelage.evaluation.selection import MAX_SUBSETS, RewardAmongSurprising, subsets_of

# Mean surprisals 1, 3, 2, 0.5; sums 10, 3, 4, 15.
FOUR = Candidates([-10, -3, -4, -15], [10, 1, 2, 30], [True, False, True, True], [0.1, 0.9, 0.2, 0.3], [0, 1, 0, 2])
EVERYTHING = ("correct", "answers", "rewards")


def random_candidates(seed: int, count: int = 6) -> Candidates:
    generator = np.random.default_rng(seed)
    return Candidates(
        (-generator.integers(1, 9, count)).tolist(),  # with ties
        generator.integers(1, 4, count).tolist(),
        (generator.random(count) < 0.5).tolist(),
        generator.integers(0, 3, count).tolist(),
        generator.integers(-1, 3, count).tolist(),
    )


def part_of(candidates: Candidates, places: list[int]) -> Candidates:
    parts = vars(candidates).values()
    return Candidates(*(None if part is None else [part[place] for place in places] for part in parts))


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ("reward", 1),
        ("surprisal", 2),
        ("surprisal_sum", 3),
        ("surprisal_top3", 3),
        ("least_surprisal", 3),
        ("likelihood", 3),
        ("likelihood_sum", 1),
        ("majority", 0),
    ],
)
def test_what_is_kept(rule: str, place: int) -> None:
    assert SELECTIONS[rule].selected(FOUR) == place


@pytest.mark.parametrize("rule", SELECTIONS)
def test_one_answer_is_kept_and_of_equal_ones_the_first(rule: str) -> None:
    assert SELECTIONS[rule].selected(Candidates([-1], [1], [False], [0.0], [-1])) == 0
    for is_correct in (True, False):
        assert SELECTIONS[rule].selected(Candidates([-1] * 3, [1] * 3, [is_correct] * 3, [2] * 3, [0] * 3)) == 0


@pytest.mark.parametrize("rule", SELECTIONS)
def test_the_order_of_the_answers_matters_for_ties_only(rule: str) -> None:
    generator = np.random.default_rng(1)
    distinct = Candidates(
        generator.normal(size=5).tolist(), [1] * 5, [True, False, True, True, False], [3, 1, 4, 2, 5], [0, 1, 2, 1, -1]
    )
    kept = SELECTIONS[rule].selected(distinct)
    for places in itertools.permutations(range(5)):
        found = places[SELECTIONS[rule].selected(part_of(distinct, list(places)))]
        assert found == kept or (rule == "majority" and distinct.answers_N[found] == distinct.answers_N[kept])


@pytest.mark.parametrize("rule", [name for name, rule in SELECTIONS.items() if "correct" in rule.needs])
@pytest.mark.parametrize("seed", range(20))
def test_no_wrong_answer_is_kept_where_there_is_a_right_one(rule: str, seed: int) -> None:
    candidates = random_candidates(seed)
    kept = SELECTIONS[rule].selected(candidates)
    assert candidates.correct_N[kept] == any(candidates.correct_N)
    if not any(candidates.correct_N):
        assert candidates.rewards_N[kept] == max(candidates.rewards_N)


def test_a_mean_does_not_prefer_length_and_a_sum_does() -> None:
    twice_as_long = Candidates([-6, -4], [6, 2], [True, True])
    assert SELECTIONS["surprisal"].selected(twice_as_long) == 1
    assert SELECTIONS["surprisal_sum"].selected(twice_as_long) == 0
    repeated = Candidates([-3, -6], [3, 6], [True, True])
    assert SELECTIONS["surprisal"].selected(repeated) == 0


def test_without_rewards_and_right_answers_the_first_is_kept() -> None:
    assert SELECTIONS["surprisal"].selected(Candidates([-1, -9], [1, 1], [False, False])) == 0


@pytest.mark.parametrize("seed", range(10))
def test_enough_at_the_top_are_all_right_answers(seed: int) -> None:
    candidates = random_candidates(seed)
    rewards, correct = np.array(candidates.rewards_N), np.array(candidates.correct_N)
    kept = RewardAmongSurprising(top=int(max(1, correct.sum()))).selected(candidates)
    assert rewards[kept] == (rewards[correct].max() if correct.any() else rewards.max())


def test_votes_are_counted_and_no_answer_has_none() -> None:
    def kept(answers: list[int]) -> int:
        count = len(answers)
        return SELECTIONS["majority"].selected(Candidates([0] * count, [1] * count, answers_N=answers))

    assert kept([0, 1, 1]) == 1 and kept([-1, -1, -1, 0]) == 3 and kept([-1, -1]) == 0
    assert kept([2, 0, 1, 0, 1]) == 1, "of two that are given twice, the one given first"


@pytest.mark.parametrize("rule", SELECTIONS)
@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_mean_is_the_one_over_all_subsets(rule: str, size: int) -> None:
    candidates = random_candidates(3)
    values = np.random.default_rng(0).normal(size=(6, 2))
    subsets = itertools.combinations(range(6), size)
    expected = [
        values[subset[SELECTIONS[rule].selected(part_of(candidates, list(subset)))]] for subset in map(list, subsets)
    ]
    found = SELECTIONS[rule].expected(candidates, values, size, (0,))
    np.testing.assert_allclose(found, np.mean(expected, axis=0))


def test_subsets_are_few_ascending_and_belong_to_the_seed() -> None:
    drawn = subsets_of(20, 10, (1, 2))
    assert drawn.shape == (MAX_SUBSETS, 10) and (np.diff(drawn, axis=1) > 0).all() and drawn.max() == 19
    assert np.array_equal(drawn, subsets_of(20, 10, (1, 2))) and not np.array_equal(drawn, subsets_of(20, 10, (1, 3)))
    assert subsets_of(5, 2, ()).tolist() == [list(pair) for pair in itertools.combinations(range(5), 2)]


def test_a_summary_has_every_rule_for_powers_of_two() -> None:
    problems = [random_candidates(seed) for seed in range(8)]
    rules = selections_named(["surprisal", "majority"], EVERYTHING, "--select")
    found = summarise_selected(problems, rules, seed=0)
    assert [(each.rule, each.num_samples) for each in found] == [
        (rule, size) for rule in ("surprisal", "majority") for size in (1, 2, 4)
    ]
    correct = np.array([problem.correct_N for problem in problems])
    for each in (found[0], found[3]):
        assert each.pass_rate == pytest.approx(correct.mean())
        assert each.mean_reward == pytest.approx(np.mean([problem.rewards_N for problem in problems]))
        assert each.pass_rate_interval[0] < each.pass_rate < each.pass_rate_interval[1]
    bare = [Candidates([-1, -2], [3, 5], [True, False])]
    (one, two) = summarise_selected(bare, selections_named(["likelihood"], [], "--select"), seed=0)
    assert (one.mean_reward, one.mean_response_tokens, two.mean_response_tokens) == (None, 4.0, 3.0)


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["majorty"], EVERYTHING, r"--by names 'majorty'; expected one of reward, .* Did you mean 'majority'\?"),
        (["reward", "reward"], EVERYTHING, "'reward' twice"),
        (["reward"], ["correct"], r"'reward', which needs rewards, and no run file with a \[\[reward\]\]"),
        (["surprisal"], ["answers"], "'surprisal', which needs verdicts .* Set data.verifier"),
        (["majority"], [], "'majority', which needs a verifier"),
    ],
)
def test_rules_that_cannot_be_used_are_refused(names: list[str], known: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        selections_named(names, known, "--by")


def test_candidates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"lengths \[1, 2\]"):
        Candidates([-1, -2], [1])
    with pytest.raises(DataError, match=r"lengths \[0\]"):
        Candidates([], [])
    with pytest.raises(DataError, match="log-probabilities"):
        SELECTIONS["likelihood"].selected(Candidates([float("nan")], [1]))
    with pytest.raises(DataError, match="rewards"):
        SELECTIONS["reward"].selected(Candidates([-1], [1]))
