"""Curves over seeds: means and bands are those of the steps that all seeds have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tutelage.report import plot_methods
from tutelage.report.records import Curve, evaluations_of, greedy_names, mean_and_spread, pass_at_1_curve


def test_mean_and_spread_of_the_common_steps() -> None:
    lines = [Curve(np.array([0.0, 1, 2]), np.array([1.0, 2, 3])), Curve(np.array([1.0, 2]), np.array([4.0, 5]))]
    mean, spread = mean_and_spread(lines)
    assert mean.steps.tolist() == [1, 2] and mean.values.tolist() == [3, 4]
    assert spread == pytest.approx(np.sqrt([2, 2]))
    assert mean_and_spread(lines[:1])[1].tolist() == [0, 0, 0]


def test_sampled_and_greedy_answers_are_told_apart() -> None:
    rows = [
        {"step": 0, "name": name, "pass_at_1": value}
        for name, value in (("a", 0.1), ("a-greedy", 0.5), ("b", 0.3), ("b-greedy", 0.7), ("non-greedy", 0.2))
    ]
    evaluations = evaluations_of(rows)
    assert greedy_names(evaluations) == {"a-greedy", "b-greedy"}, "a set may end in the word without being a twin"
    assert pass_at_1_curve(evaluations).values == pytest.approx([0.2])
    assert pass_at_1_curve(evaluations, is_greedy=True).values == pytest.approx([0.6])
    assert len(pass_at_1_curve({})) == 0


@pytest.mark.runs
@pytest.mark.parametrize("with_greedy", [True, False])
def test_methods_are_drawn(tmp_path: Path, with_greedy: bool) -> None:
    folders = {}
    for method in ("opd", "_t$rb"):
        folders[method] = [tmp_path / method / str(seed) for seed in range(2)]
        for place, folder in enumerate(folders[method]):
            folder.mkdir(parents=True)
            rows = [{"step": step, "reward": 0.1 * place, "teacher_logprob": -1.0} for step in range(3)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            names = ["p", *(["p-greedy"] if with_greedy else [])]
            looks = [{"step": step, "name": name, "pass_at_1": 0.2} for step in (0, 3) for name in names]
            (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in looks))
    path = plot_methods({**folders, "failed": []}, tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
