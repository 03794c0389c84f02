"""`benchmarks/real_study.py`: every arm is a run, stages add up, and the tables are made of the runs' files alone."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import load_config

SIZES = Namespace(steps=12, prompts=4, tokens=16, workers=1, device="cpu", drop=20, seeds=2)


@pytest.fixture
def real_study(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("real_study")


def test_every_arm_differs_in_its_method_alone(real_study: Any, tmp_path: Path) -> None:
    study = real_study.Study(tmp_path, SIZES)
    for arm, stages in real_study.ARMS.items():
        jobs = [study.job(arm, number, 5, tmp_path / "student") for number in range(len(stages))]
        assert sum(job.num_steps for job in jobs) == SIZES.steps
        configs = [load_config(job.run_file) for job in jobs]
        assert len({config.seed for config in configs}) == len(jobs), "no stage draws another one's numbers"
        for config in configs:
            assert config.evaluation.teacher_reads and len(config.evaluation.texts) == 5
            rollout = config.rollout
            assert (rollout.prompts_per_step, rollout.samples_per_prompt, rollout.max_new_tokens) == (4, 2, 16)
        of_opd = load_config(study.job("opd", 0, 5, tmp_path / "student").run_file).divergence
        assert configs[-1].divergence == of_opd or arm == "fixed_negative"


def write_run(study: Any, real_study: Any, arm: str, seed: int, kl: list[float], tokens: float) -> None:
    """The files of a finished run with evaluations at steps 0, 6 and 12; the loss of a step is its number."""
    folder = study.run_folder(arm, 0, seed)
    folder.mkdir(parents=True)
    metrics = [
        {"step": n, "loss": n, "response_tokens_total": tokens, "seconds": 2.0, "processor_seconds": 1.0}
        for n in range(12)
    ]
    keys = {key for file, _, key, _ in real_study.MEASURES.values() if file == "evaluations"}
    looks = [
        {"step": 6 * place, "name": name, **dict.fromkeys(keys, 0.5), "reverse_kl": value}
        for place, value in enumerate(kl)
        for name in ("held_out", "other_kinds")
    ]
    names = {subset for file, subset, _, _ in real_study.MEASURES.values() if file == "texts"}
    texts = [{"step": step, "name": name, "logprob": -2.0} for step in (0, 6, 12) for name in names]
    for name, rows in {"metrics": metrics, "evaluations": looks, "texts": texts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tables_of_finished_runs(real_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = real_study.Study(tmp_path, SIZES)
    for seed in (0, 1):
        write_run(study, real_study, "opd", seed, [8.0, 5.0, 2.0 + seed], 100.0)
        write_run(study, real_study, "trb_wide", seed, [8.0, 3.0, 1.0 + seed], 200.0)
    monkeypatch.setattr(real_study, "is_finished", lambda folder, steps: folder.exists())
    real_study.write_tables(study)
    text = (tmp_path / "results.md").read_text()
    assert "| before (n 2) | 8.00 ± 0.00 |" in text
    assert (
        "| opd (n 2) | 2.50 ± 0.71 | -2.00 ± 0.00 | 8.50 ± 0.00 |" in text
        and "| trb_wide (n 2) | 1.50 ± 0.71<br>-1.00 [-1.00, -1.00] |" in text
    )
    runs = {arm: {seed: real_study.read_arm(study, arm, seed) for seed in (0, 1)} for arm in ("opd", "trb_wide")}
    assert runs["opd"][0].train_kl == pytest.approx(sum(range(6, 12)) / 6), "the steps after the last look but one"
    assert runs["opd"][0].values["written"] == [-2.0] * 3
    # With as many tokens as plain OPD takes in all, half of TRB's run; with as many seconds, all of it.
    equal = real_study.equal_spending(runs)["trb_wide"][0]
    assert equal["kl at equal tokens"] == pytest.approx(3.0) and equal["kl at equal seconds"] == pytest.approx(1.0)
    best = real_study.bests(runs, 0)
    assert best == {"kl": -1.0, "written": -2.0}
    costs = real_study.costs_of(runs["trb_wide"][0], best)
    assert costs["steps to kl"] == pytest.approx(6 + 6 * (3.0 - 1.7) / 2.0) and costs["tokens"] == 2400
    assert "steps to kl" not in real_study.costs_of(runs["opd"][0], best), "it never gets there"
    assert (tmp_path / "curves.png").stat().st_size > 0 and (tmp_path / "results.json").exists()
    shutil.rmtree(tmp_path / "runs")
    real_study.write_tables(study)
    assert (tmp_path / "results.md").read_text() == text, "from results.json alone"


def test_tables_of_nothing_are_refused_in_one_line(real_study: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has neither runs nor results.json; leave out --tables"):
        real_study.write_tables(real_study.Study(tmp_path, SIZES))


@pytest.mark.parametrize("drop", (8, 20))
def test_the_pages_are_what_the_script_makes_of_their_numbers(real_study: Any, tmp_path: Path, drop: int) -> None:
    own = Path(real_study.HERE).parent / "docs" / "results" / "real-pair" / f"drop-{drop}"
    shutil.copy(own / "results.json", tmp_path)
    real_study.write_tables(real_study.Study(tmp_path, Namespace(drop=drop)))
    assert (tmp_path / "results.md").read_text() == (own / "results.md").read_text()
