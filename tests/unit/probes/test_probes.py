from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.cli import app
from tutelage.diagnostics import teacher_support_auroc
from tutelage.errors import ConfigurationError, OutputExistsError
from tutelage.policies import Student, Teacher, TrustRegion
from tutelage.probes import ProbeParts, probe_budget, probe_continuation
from tutelage.probes.continuation import continued
from tutelage.rollout import PairedEngine, derive_seed
from tutelage.types import Prompt

LIMIT = 10


@pytest.fixture(scope="module")
def parts() -> ProbeParts:
    """Right is an answer whose tokens and the prompt's answer have an even sum."""
    student = make_model("qwen3", vocab_size=20, stop_ids=7, seed=1)
    teacher = make_model("qwen3", vocab_size=20, stop_ids=7, seed=2)
    prompts = [Prompt([1, 2, 3]), Prompt([4, 9]), Prompt([5]), Prompt([6, 6])]

    def verify(rollouts, answers):
        return [(sum(r.response_tokens) + int(answer)) % 2 == 0 for r, answer in zip(rollouts, answers, strict=True)]

    engine = PairedEngine(student, teacher, support_size=4)
    return ProbeParts(engine, engine, prompts, list("0101"), verify, LIMIT, seed=5)


@torch.no_grad()
def test_a_continuation_keeps_the_prefix_and_is_drawn_from_the_continuer(parts: ProbeParts) -> None:
    answers = parts.engine.generate(Student(), parts.prompts, max_new_tokens=LIMIT, num_samples=8)
    for length in (1, 4):
        written = continued(parts, answers, length, Teacher())
        for before, after in zip(answers, written, strict=True):
            if len(before) <= length:
                assert after is before and before.finished
                continue
            assert after.response_tokens[:length] == before.response_tokens[:length]
            assert length < len(after) <= LIMIT and (after.finished or len(after) == LIMIT)
            tokens = [*after.prompt_tokens, *after.response_tokens]
            logits = parts.engine.teacher.module(input_ids=torch.tensor([tokens])).logits[0]
            logprobs = parts.engine.vocabulary.shared_logits(logits).log_softmax(-1)
            for place in range(length, len(after)):
                expected = logprobs[len(after.prompt_tokens) + place - 1, after.response_tokens[place]]
                torch.testing.assert_close(after.behaviour_logprobs[place], expected, rtol=1e-4, atol=2e-5)
        rests = {tuple(after.response_tokens[length:]) for after in written[:8]}
        assert len(rests) > 1, "samples of one prompt go on with their own random numbers"


@pytest.mark.runs
def test_gains_are_those_of_counting(parts: ProbeParts) -> None:
    gains = probe_continuation(parts, TrustRegion(0.5), [2, 5], num_samples=6)
    assert [(gain.length, gain.continuer) for gain in gains] == [
        (2, "teacher"), (2, "student"), (5, "teacher"), (5, "student"),
    ]  # fmt: skip
    seed = derive_seed(5, "probe")
    for gain in gains:
        shares = []
        for policy in (TrustRegion(0.5), Student()):
            answers = parts.engine.generate(
                policy, parts.prompts, max_new_tokens=LIMIT, num_samples=6, seed=seed, records_statistics=False
            )
            continuer = Teacher() if gain.continuer == "teacher" else Student()
            shares.append(np.mean(parts.judge(continued(parts, answers, gain.length, continuer))))
        low, high = gain.difference_interval
        assert (gain.policy_success, gain.student_success) == pytest.approx(shares)
        assert gain.difference == pytest.approx(shares[0] - shares[1])
        assert gain.relative_gain == pytest.approx(shares[0] / shares[1] - 1)
        assert low <= gain.difference <= high
    assert any(gain.difference != 0 for gain in gains)


def test_the_student_has_no_gain_over_itself(parts: ProbeParts) -> None:
    for gain in probe_continuation(parts, Student(), [1, 3], num_samples=3):
        assert gain.difference == 0 and gain.difference_interval == (0, 0)
        assert gain.relative_gain == 0 and gain.relative_gain_interval in (None, (0, 0))


@pytest.mark.parametrize("length", [0, LIMIT])
def test_lengths_that_leave_nothing_are_refused(parts: ProbeParts, length: int) -> None:
    with pytest.raises(ConfigurationError, match=f"a length is {length}; expected 1 to {LIMIT - 1}"):
        probe_continuation(parts, Student(), [length], num_samples=1)


def test_a_budget_point_is_what_its_rollouts_say(parts: ProbeParts) -> None:
    own, far = probe_budget(parts, [0.0, 50.0], num_samples=6)
    assert own.kl_radius == 0 and own.kl_used is None and own.blend_mean is None
    assert far.blend_mean == 1 and far.teacher_logprob > own.teacher_logprob, "a large budget is the teacher itself"
    seed = derive_seed(5, "probe")
    rollouts = parts.engine.generate(Student(), parts.prompts, max_new_tokens=LIMIT, num_samples=6, seed=seed)
    rollouts = parts.engine.score(rollouts)
    correct = parts.judge(rollouts)
    assert own.reward == pytest.approx(np.mean(correct))
    assert own.teacher_logprob == pytest.approx(float(torch.cat([r.teacher_logprobs for r in rollouts]).mean()), 1e-5)
    assert own.teacher_support_auroc == teacher_support_auroc(rollouts, correct)
    for number in ("reward", "teacher_logprob", "teacher_support_auroc"):
        low, high = getattr(own, f"{number}_interval")
        assert low <= getattr(own, number) <= high and low < high, number


@pytest.mark.runs
def test_both_commands(tmp_path: Path) -> None:
    run_file = str(write_run_file(tmp_path))
    common = ["--limit", "3", "--samples", "2", "--set", "data.verifier=exact", "--output"]
    for command, option, count in (("continuation", ["--lengths", "2,4"], 4), ("budget", ["--radii", "0,0.1"], 2)):
        output, figure = tmp_path / f"{command}.json", tmp_path / f"{command}.svg"
        files = [*common, str(output), "--figure", str(figure)]
        done = CliRunner().invoke(app, ["probe", command, run_file, *option, *files])
        assert done.exit_code == 0, done.output
        assert len(json.loads(output.read_text())) == count
        assert "</svg>" in figure.read_text()
        again = CliRunner().invoke(app, ["probe", command, run_file, "--figure", str(figure)])
        assert isinstance(again.exception, OutputExistsError)
    wrong = CliRunner().invoke(app, ["probe", "budget", run_file, "--radii", "a"])
    assert isinstance(wrong.exception, ConfigurationError) and "--radii 0,0.001" in str(wrong.exception)
    shapeless = CliRunner().invoke(app, ["probe", "budget", run_file, "--figure", str(tmp_path / "figure.gif")])
    assert isinstance(shapeless.exception, ConfigurationError) and ".svg" in str(shapeless.exception)
    unjudged = CliRunner().invoke(app, ["probe", "budget", run_file, "--set", "data.verifier="])
    assert isinstance(unjudged.exception, ConfigurationError) and "data.verifier is empty" in str(unjudged.exception)
