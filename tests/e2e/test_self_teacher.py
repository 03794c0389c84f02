"""The student as its own teacher, which reads more: first, moving and present weights (OPSD, arXiv 2601.18734)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.objectives import objective_of
from tests.support.quick_run import metrics
from tests.support.rollouts import rated
from tests.support.scored_answers import scored
from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.config import RunAssembly, build_run, load_config
from tutelage.errors import ConfigurationError
from tutelage.losses.distributions import JensenShannon, ReverseKL
from tutelage.models import LanguageModel, ModelSet, reference_snapshot
from tutelage.policies import Student
from tutelage.preflight.finding import Verdict
from tutelage.preflight.tokens import prompts
from tutelage.rollout import PairedEngine
from tutelage.training import Observer, Run, train
from tutelage.types import Prompt

OWN = ["teacher={weights='student'}", "data.privileged_column=solution", "policy=student", "evaluation.sets=[]"]
MOVING = ["teacher.refresh_every=2", "teacher.share=0.5"]
LORA = "student.adapter={rank=2}"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = write_run_file(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    told = [{**row, "solution": f"It is {row['answer']}."} for row in rows]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def made(path: Path, *overrides: str, resume: bool = False) -> Run:
    return build_run(load_config(path, [*OWN, *overrides]), resume=resume)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder)]


@pytest.mark.parametrize("what_learns", [[], [LORA]], ids=["all weights", "adapter"])
def test_first_moving_and_present_weights(run_file: Path, what_learns: list[str]) -> None:
    """They are the same teacher in the first step, and no longer in the second."""
    found = []
    for name, weights in {"first": [], "mean": ["1", "0.5"], "present": ["1", "1.0"]}.items():
        keys = ("teacher.refresh_every", "teacher.share")
        moves = [f"{key}={value}" for key, value in zip(keys, weights, strict=False)]
        run = made(run_file, *what_learns, *moves, "steps=3", f"output={run_file.parent / name}")
        assert run.models.teacher is not run.models.student
        train(run, Observer())
        found.append(losses(run_file.parent / name))
    assert len({values[0] for values in found}) == 1 and found[0][0] > 0
    assert len({values[2] for values in found}) == 3


@pytest.mark.parametrize("what_learns", [[], [LORA]], ids=["all weights", "adapter"])
def test_a_teacher_that_follows_is_resumed_as_it_was(run_file: Path, what_learns: list[str]) -> None:
    folder, moving = run_file.parent, [*what_learns, *MOVING, "checkpoint.every=1"]
    train(made(run_file, *moving, "steps=4", f"output={folder / 'whole'}"), Observer())
    train(made(run_file, *moving, "steps=3", f"output={folder / 'cut'}"), Observer())
    train(made(run_file, *moving, "steps=4", f"output={folder / 'cut'}", resume=True), Observer())
    assert losses(folder / "cut") == losses(folder / "whole")
    weights = "adapter_model" if what_learns else "model"
    for name in (f"{weights}.safetensors", "past.pt"):
        cut, whole = (folder / run / "checkpoints/step-000004" / name for run in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("what_learns", [[], [LORA]], ids=["all weights", "adapter"])
def test_such_a_teacher_can_help_to_draw(run_file: Path, what_learns: list[str]) -> None:
    run = made(run_file, *what_learns, *MOVING, "policy={name='trust_region', kl_radius=0.05}", "steps=2")
    train(run, Observer())
    assert metrics(run_file.parent / "run")[0]["blend_mean"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.privileged_column=answer_key"], r"no column 'answer_key'.*data\.privileged_column"),
        (["data.privileged_template='{prompt} {solution}'"], r"without \{privileged\}"),
        (
            [*MOVING, "reference.refresh_every=1", "target.name=self_past", "target.past_weight=0.5"],
            "one model at most",
        ),
        (["runtime.shard_teacher=true"], "there are .*teacher.weights"),
    ],
)
def test_what_cannot_be_is_refused(run_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(run_file, *overrides)


def test_a_teacher_that_knows_no_more_is_refused(run_file: Path) -> None:
    with pytest.raises(ConfigurationError, match="reads what the student reads, so there would be nothing to learn"):
        build_run(load_config(run_file, [OWN[0], *OWN[2:]]))
    with pytest.raises(
        ConfigurationError, match=r"data\.privileged_template is set, and data\.privileged_column names no"
    ):
        build_run(load_config(run_file, ["data.privileged_template='{privileged} {prompt}'"]))


def test_it_takes_the_memory_of_a_copy_or_none(run_file: Path) -> None:
    def of_teacher(*overrides: str) -> int:
        config = load_config(run_file, [*OWN, *overrides])
        return RunAssembly(config).step_memory().forecast(1000)["update"]["teacher"]

    half = "student.dtype=bfloat16"
    assert of_teacher(LORA) == of_teacher(LORA, *MOVING) == 0
    assert of_teacher(half, *MOVING) == of_teacher() == of_teacher(*MOVING) == 2 * of_teacher(half) > 0, (
        "means are wide"
    )


def test_the_doctor_sees_that_the_prompts_are_meant_to_differ(run_file: Path) -> None:
    finding = prompts(RunAssembly(load_config(run_file, OWN)))
    assert finding.verdict == Verdict.ok and "the prompts differ, as [data] asks for" in finding.text
    assert any("It is 0." in line for line in finding.details)


# --- facts of the method ---------------------------------------------------------------------------------------------


def own_models() -> ModelSet:
    student = LanguageModel(make_model("qwen3", vocab_size=24, stop_ids=7, seed=1))
    return ModelSet.of(student, reference_snapshot(student))


def answered(models: ModelSet, *prompts: Prompt) -> list[Any]:
    engine = PairedEngine(models.student, models.teachers)
    return scored(models, engine.generate(Student(), list(prompts), max_new_tokens=6, num_samples=2))


@pytest.mark.parametrize(
    "loss", [JensenShannon(support="full"), JensenShannon(top_k=4, rest="renormalised"), ReverseKL()], ids=str
)
def test_without_privilege_the_first_weights_teach_nothing(loss: Any) -> None:
    models = own_models()
    found = objective_of(models, loss).backward(rated(answered(models, Prompt([1, 2, 3]), Prompt([4, 9]))))
    gradients = [weight.grad for weight in models.student.module.parameters() if weight.grad is not None]
    assert abs(found.loss) < 1e-12 and max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
    told = answered(models, Prompt([1, 2, 3], teacher_tokens=[1, 2, 3, 5, 6]))
    assert objective_of(models, loss).backward(rated(told)).loss > 1e-6


def test_both_sides_score_the_same_tokens_after_prompts_of_other_lengths() -> None:
    models = own_models()
    tokens = [1 + place % 20 for place in range(57)]
    (rollout, _) = answered(models, Prompt(tokens[:11], teacher_tokens=tokens))
    for model, length, prompt, known in (
        (models.student, 11, rollout.prompt_tokens, rollout.student_logprobs),
        (models.teacher, 57, rollout.tokens_for_teacher, rollout.teacher_logprobs),
    ):
        assert len(prompt) == length
        with torch.no_grad():
            logits_TV = model.module(torch.tensor([[*prompt, *rollout.response_tokens]])).logits[0]
        response = torch.tensor(rollout.response_tokens)
        expected = logits_TV[length - 1 : -1].log_softmax(-1).gather(-1, response[:, None])[:, 0]
        torch.testing.assert_close(known, expected, rtol=1e-4, atol=1e-5)


def test_what_a_student_without_the_privilege_can_reach() -> None:
    """E_c KL(q_c || p) has its minimum, the mutual information of token and privilege, at p = E_c q_c."""
    taught = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()

    def mean_kl(share: float) -> float:
        student = torch.tensor([share, 1 - share]).log().expand(2, 2)
        return float(JensenShannon(target_share=0, support="full").between(student, taught).mean())

    assert mean_kl(0.5) == pytest.approx(0.3681, abs=5e-5)
    assert mean_kl(0.5) < min(mean_kl(0.45), mean_kl(0.55))
    one, other = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]).log()
    values = {
        share: float(JensenShannon(target_share=share, support="full").between(one, other)) for share in (0, 0.5, 1)
    }
    assert values == pytest.approx({0: 0.0851, 0.5: 0.0219, 1: 0.0920}, abs=5e-5)
