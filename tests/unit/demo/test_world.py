"""The problems of the demo: the same for the same seed, right when clean, wrong in the announced way when noisy."""

import json
import random
import re

import pytest

from tutelage.demo import make_problems, world, write_problems
from tutelage.demo.make_pair import HELD_OUT_SEED, TOKENIZER_SEED, TRAINING_SEED

LINE = re.compile(r": (\d+)([-+*/])(\d+)=(\d+)$")
BOXED = re.compile(r"\\boxed\{(\d+)\}")


def sums(solution: str) -> list[tuple[int, str, int, int]]:
    found = [LINE.search(line) for line in solution.splitlines()]
    return [(int(line[1]), line[2], int(line[3]), int(line[4])) for line in found if line]


def value(before: int, operation: str, operand: int) -> int:
    return {"+": before + operand, "-": before - operand, "*": before * operand, "/": before // operand}[operation]


def test_same_seed_same_problems() -> None:
    assert make_problems(50, 3) == make_problems(50, 3)
    assert make_problems(50, 3)[:20] == make_problems(20, 3)
    assert make_problems(50, 3) != make_problems(50, 4)


def test_problems_within_a_seed_differ() -> None:
    problems = make_problems(2000, 5)
    assert len({problem.problem for problem in problems}) == 2000
    assert len({problem.id for problem in problems}) == 2000


@pytest.mark.sweeps
def test_training_and_evaluation_problems_are_disjoint() -> None:
    training = {problem.problem for problem in make_problems(10_000, TRAINING_SEED)}
    for seed in (TOKENIZER_SEED, HELD_OUT_SEED, HELD_OUT_SEED + 1, 0, 1, 7):
        shared = training & {problem.problem for problem in make_problems(1000, seed)}
        assert len(shared) < 10, f"seed {seed} shares {len(shared)} of 1000 problems with the training seed"


def test_clean_solutions_are_right() -> None:
    for problem in make_problems(1000, 6):
        assert BOXED.findall(problem.solution) == [problem.answer]
        total = int(re.search(r"has (\d+)\.", problem.solution)[1])
        steps = sums(problem.solution)
        assert 2 <= len(steps) <= 4
        for before, operation, operand, after in steps:
            assert before == total
            assert operation != "/" or before % operand == 0
            assert after == value(before, operation, operand)
            assert 1 <= after <= world.MAX_TOTAL
            total = after
        assert str(total) == problem.answer


def test_numbers_of_the_solution_are_told_in_the_problem_and_distractors_are_not_used() -> None:
    num_with_distractor = 0
    for problem in make_problems(500, 7):
        told = [int(number) for number in re.findall(r"\d+", problem.problem)]
        steps = sums(problem.solution)
        used = [steps[0][0]] + [operand for _, operation, operand, _ in steps if operation != "/"]
        for number in used:
            told.remove(number)
        num_with_distractor += bool(told)
    assert 250 < num_with_distractor < 500


def test_wording_varies() -> None:
    shapes = {re.sub(r"\d+", "0", problem.problem) for problem in make_problems(500, 8)}
    assert len(shapes) > 490


def test_careless_slips_carry_on() -> None:
    rng = random.Random(0)
    num_right_after_a_slip = 0
    for story in world.make_stories(500, 9):
        solution = world.careless_solution(story, rng)
        steps = sums(solution)
        total, slipped = story.start, False
        for before, operation, operand, after in steps:
            assert before == total, "a step goes on from the total that was written, right or wrong"
            is_right = after == value(before, operation, operand)
            num_right_after_a_slip += slipped and is_right
            slipped |= not is_right
            total = after
        assert slipped
        assert BOXED.findall(solution) == [str(total)]
        assert total != story.answer
    assert num_right_after_a_slip > 100


def test_guesses_show_no_work() -> None:
    rng = random.Random(0)
    for _ in range(50):
        guess = world.guessed_solution(rng)
        assert len(BOXED.findall(guess)) == 1
        assert sums(guess) == []


def test_drifting_stories_leave_the_path() -> None:
    rng = random.Random(0)
    stories = world.make_stories(500, 10)
    drifted = [world.drifting_solution(story, rng) for story in stories]
    num_right = sum(BOXED.findall(text) == [str(story.answer)] for story, text in zip(stories, drifted, strict=True))
    num_without_answer = sum("boxed" not in text for text in drifted)
    assert num_right < 25
    assert 150 < num_without_answer < 350


def test_noisy_mixture_keeps_its_shares() -> None:
    rng = random.Random(0)
    stories = world.make_stories(2000, 11)
    is_clean = [world.noisy_solution(story, rng) == world.clean_solution(story) for story in stories]
    assert sum(is_clean) / len(is_clean) == pytest.approx(world.NOISY.clean, abs=0.05)


def test_stories_have_as_many_steps_as_asked_for() -> None:
    assert {len(story.steps) for story in world.make_stories(200, 12)} == {2, 3, 4}
    assert {len(story.steps) for story in world.make_stories(50, 12, (4, 4))} == {4}
    assert {len(story.steps) for story in world.make_stories(50, 12, (6, 7))} == {6, 7}


def test_written_rows_are_the_problems(tmp_path) -> None:
    path = tmp_path / "problems.jsonl"
    write_problems(path, 5, seed=1)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["id", "problem", "answer", "solution"]] * 5
    assert [world.WordProblem(**row) for row in rows] == make_problems(5, seed=1)


def test_an_existing_file_is_refused(tmp_path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="Choose another path"):
        write_problems(path, 5, seed=1)
    assert path.read_text() == "mine"
