"""A run that keeps right answers of its first evaluation: its numbers again, from its files and plain forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError
from tutelage.training import Observer, train

SHORT = ["steps=2", "policy=student", "evaluation.every=1", "evaluation.num_samples=4", "evaluation.max_new_tokens=4"]
LEARNS_FAST = ["optimizer.learning_rate=0.02", "optimizer.warmup_steps=0", "checkpoint.every=1"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.runs
def test_retained_gained_and_lost_by_loops(tmp_path: Path) -> None:
    verifier = "data.verifier=tests.support.verdicts:has_an_odd_length"
    overrides = [*SHORT, *LEARNS_FAST, verifier, "evaluation.retained_answers=3"]
    run = build_run(load_config(write_run_file(tmp_path), overrides))
    train(run, Observer())
    folder = tmp_path / "run"
    first, *later = lines(folder / "evaluations.jsonl")
    assert first["retained_mass"] == 1 and "gained_share" not in first

    kept = lines(folder / "evaluations/kept-sums.jsonl")
    samples = {step: lines(folder / f"evaluations/step-{step:06d}-sums.jsonl") for step in (0, 1, 2)}
    right = sorted((each["sample_index"], place // 4) for place, each in enumerate(samples[0]) if each["correct"])
    assert [(row["sample_index"], row["problem"]) for row in kept] == right[:3] and len(right) > 3

    prompts = [prompt.student_tokens for prompt in run.evaluation.sets[0].prompts]
    for record in later:
        step = record["step"]
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / f"checkpoints/step-{step:06d}")
        lost = 0.0
        for row in kept:
            prompt, response = list(prompts[row["problem"]]), row["response_tokens"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
            logits = run.source.models.vocabulary.shared_logits(logits)
            now = sum(float(row_V.log_softmax(-1)[token]) for row_V, token in zip(logits, response, strict=True))
            lost += max(0.0, 1 - 2.718281828459045 ** (now - row["logprob"]))
        assert record["retained_mass"] == pytest.approx(1 - lost / len(kept), abs=1e-4)
        assert 0 < record["retained_mass"] < 1

        solved = {}
        for when in (0, step):
            marks: dict[str, list[bool]] = {}
            for each in samples[when]:
                marks.setdefault(each["problem_id"], []).append(each["correct"])
            solved[when] = {problem for problem, found in marks.items() if sum(found) >= 2}
        assert record["gained_share"] == pytest.approx(len(solved[step] - solved[0]) / 3)
        assert record["lost_share"] == pytest.approx(len(solved[0] - solved[step]) / 3)


def test_it_needs_answers_at_temperature_1(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the estimate holds for answers drawn at temperature 1"):
        load_config(write_run_file(tmp_path), ["evaluation.retained_answers=5", "evaluation.temperature=0.7"])
