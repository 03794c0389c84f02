"""What an evaluation during a run says beside right and wrong, again from its files and plain forwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tutelage
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.distributions import entropy, gather_logprobs, kl_divergence
from tutelage.errors import ConfigurationError
from tutelage.evaluation import mark
from tutelage.training import Observer, train

SHORT = ["steps=2", "policy=student", "evaluation.every=1", "evaluation.max_new_tokens=6", "checkpoint.every=1"]
READ = ["evaluation.teacher_reads=true"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logprobs(folder: Path, run: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    return run.source.models.vocabulary.shared_logits(logits).log_softmax(-1)


@pytest.mark.runs
def test_given_texts_and_the_teachers_reading(tmp_path: Path) -> None:
    answers, plain = tmp_path / "answers.jsonl", tmp_path / "plain.jsonl"
    answers.write_text(json.dumps({"problem": "What is 1?", "text": "one"}) + "\n")
    plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a tree", "the sea")))
    texts = f'[{{path = "{answers}", name = "written", prompt_column = "problem"}}, {{path = "{plain}"}}]'
    path = write_run_file(tmp_path)
    run = build_run(load_config(path, [*SHORT, *READ, f"evaluation.texts={texts}"]))
    train(run, Observer())
    folder = tmp_path / "run"

    records = lines(folder / "texts.jsonl")
    assert [(r["step"], r["name"], r["are_answers"], r["num_tokens"]) for r in records] == [
        (step, *rest) for step in (0, 1, 2) for rest in (("written", True, 4), ("plain", False, 5 + 6))
    ]
    weights = folder / "checkpoints/step-000002"
    for record, sets in zip(records[-2:], run.evaluation.texts, strict=True):
        total = 0.0
        for each in sets.rollouts:
            rows_TV = logprobs(weights, run, each.prompt_tokens, each.response_tokens)
            total += float(rows_TV.gather(-1, torch.tensor(each.response_tokens)[:, None]).sum())
        assert record["logprob"] == pytest.approx(total / record["num_tokens"], abs=1e-4)

    # The same answers again: their streams do not depend on when they are drawn.
    evaluation = lines(folder / "evaluations.jsonl")[-1]
    problems, policy, drawing = run.evaluation.jobs(run.source.seed)[0]
    assert run.source.verify is not None
    marked = mark(run.source.engine, problems, policy, drawing, verify=run.source.verify)
    found: dict[str, list[torch.Tensor]] = {"student_entropy": [], "teacher_logprob": [], "reverse_kl": []}
    for each in marked.rollouts:
        student_TV, teacher_TV = (
            logprobs(where, run, each.prompt_tokens, each.response_tokens) for where in (weights, tmp_path / "teacher")
        )
        found["student_entropy"].append(entropy(student_TV))
        found["teacher_logprob"].append(gather_logprobs(teacher_TV, torch.tensor(each.response_tokens)))
        found["reverse_kl"].append(kl_divergence(student_TV, teacher_TV))
    means = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    assert {name: evaluation[name] for name in means} == pytest.approx(means, abs=1e-4)
    assert 0 < evaluation["support_overlap"] <= 1 and 0 <= evaluation["repeated_4grams"] < 1
    # `tutelage evaluate --teacher` says the same of the checkpoint.
    sums = shutil.copy(tmp_path / "prompts.jsonl", tmp_path / "sums.jsonl")  # streams go by the name of a set
    asked = {"samples": 2, "max_new_tokens": 6, "seed": 3, "limit": 3, "teacher": tmp_path / "teacher"}
    (again,) = tutelage.evaluate(weights, sums, run=path, progress=False, **asked).results
    assert {name: getattr(again, name) for name in means} == pytest.approx(means, abs=1e-4)


def test_what_could_not_be_looked_at_is_refused(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    with pytest.raises(ConfigurationError, match=r"evaluation.teacher_reads is set, and evaluation.sets is empty"):
        load_config(path, ["evaluation.sets=[]", "evaluation.teacher_reads=true"])
