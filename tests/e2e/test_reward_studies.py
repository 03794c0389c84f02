"""The studies of rewards: the world whose numbers are exact, and that the six methods can be compared at all."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.comparison import Plan
from tutelage.comparison.plan import check_comparable


@pytest.fixture
def rare(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("rare_solutions")


def answers_of(rare: Any) -> list[tuple[int, ...]]:
    """Every answer that can be drawn: up to the first END, or as long as answers get."""
    words = range(rare.VOCABULARY)
    drawn = itertools.product(words, repeat=rare.MAX_NEW_TOKENS)
    return sorted({row[: row.index(rare.END) + 1] if rare.END in row else row for row in drawn})


@pytest.mark.parametrize("problem", [(2, 3), (7, 8)], ids=["no carry", "carry"])
def test_masses_are_those_of_all_right_answers(rare: Any, problem: tuple[int, int]) -> None:
    model = rare.new_model().double().eval()
    answers = answers_of(rare)
    of_answers = rare.log_probability(model, [problem] * len(answers), answers).exp()
    assert math.isclose(float(of_answers.sum()), 1, abs_tol=1e-12)
    right = {
        answer: p for answer, p in zip(answers, of_answers.tolist(), strict=True) if rare.is_right(problem, answer)
    }
    assert {answer[0] for answer in right} == ({rare.COLUMN} if sum(problem) >= 10 else {rare.COLUMN, rare.DIRECT})
    found = {style: masses[0] for style, masses in rare.right_masses(model, [problem]).items()}
    assert math.isclose(sum(found.values()), sum(right.values()), rel_tol=1e-12)
    assert math.isclose(found["column"], right[tuple(rare.column_answer(problem))], rel_tol=1e-12)


def test_what_is_taught_are_laws_of_the_next_word(rare: Any) -> None:
    laws_BTV = rare.taught_laws((7, 8))
    sums = laws_BTV.sum(-1)
    assert torch.all((sums - 1).abs().lt(1e-6) | (sums == 0))
    assert laws_BTV[1, 2].argmax() == 5  # the ones of 15, after "column" and its tens
    assert laws_BTV[0, 0].tolist() == laws_BTV[1, 0].tolist()
    assert [row[0] for row in rare.taught(1, 5)] == [rare.DIRECT, rare.COLUMN, 5]


def test_a_run_reads_its_numbers_before_and_after(rare: Any) -> None:
    settings = replace(rare.SETTINGS, steps=2, prompts_per_step=2, steps_per_look=2)
    weights = rare.new_model().state_dict()
    plain, focal = (rare.train(weights, gamma, 3, settings) for gamma in (0.0, 1.0))
    assert [look["step"] for look in plain["looks"]] == [0, 2]
    assert plain["looks"][0] == focal["looks"][0]
    assert plain["reward"][0] == focal["reward"][0]  # the same prompts and draws
    before, after = rare.looks_of(plain)
    assert before[rare.KEPT] == 100
    assert after[rare.KEPT] <= 100


def test_equal_pass_at_1_is_where_every_run_of_a_seed_gets_to(rare: Any) -> None:
    def run(*common: float) -> dict[str, Any]:
        carrying = {"direct": [0.0], "column": [0.1]}
        looks = [
            {"step": step, "plain": {"direct": [m], "column": [0.1 / (1 + step)]}, "carrying": carrying}
            for step, m in enumerate(common)
        ]
        return {"looks": looks}

    runs = {(0.0, 0): run(0.2, 0.5, 0.8), (1.0, 0): run(0.2, 0.3, 0.6)}
    found = rare.table_of(runs, [0.0, 1.0], [0], "equal")
    # The second run ends at (0.6 + 0.1 / 3 + 0.1) / 2; the first is beyond that at its last look only.
    assert [found[name][rare.STEP]["mean"] for name in ("GRPO", "F-GRPO, gamma 1")] == [2, 2]
    runs[0.0, 0] = run(0.2, 0.7, 0.8)
    found = rare.table_of(runs, [0.0, 1.0], [0], "equal")
    assert found["GRPO"][rare.STEP]["mean"] == 1
    assert math.isclose(found["GRPO"][rare.RARE]["mean"], 5)
    assert math.isclose(found["GRPO"]["pass@64 %"]["mean"], 50 * (2 - 0.25**64 - 0.9**64))
    assert "F-GRPO, gamma 1" in rare.markdown(found)


def test_the_methods_of_the_study_can_be_compared(
    benchmark_module: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = benchmark_module("reward_study")
    plans: list[Plan] = []
    monkeypatch.setattr(study, "run_plan", lambda plan, where, console, **options: plans.append(plan))
    options = Namespace(regime="packaged", choose=False, resume=False, workers=1)
    study.compared(tmp_path / "compared", options, range(2), {name: [value] for name, value in study.SETTINGS.items()})
    (plan,) = plans
    assert [method.name for method in plan.methods] == list(study.SETTINGS)
    notes = check_comparable(plan.methods)
    assert all("optimizer." in note or "divergence" in note or "rollout.max_rows" in note for note in notes)
    by_name = {method.name: method.config for method in plan.methods}
    assert by_name["kdrl"].loss[1]["coefficient"] == study.SETTINGS["kdrl"]["loss.1.coefficient"]
    assert by_name["opd_then_rl"].phase[0].steps == study.STEPS // 2
    assert {config.evaluation.num_samples for config in by_name.values()} == {max(study.KS)}
