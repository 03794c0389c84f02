"""Runs whose answers are rated: numbers, files, resuming, and what becomes of a reward that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.quick_run import QUICK, StopAt, made, metrics
from tests.support.reward_models import save_reward_model
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config, resolve_config
from tutelage.errors import ConfigurationError, ModelError, RewardError, RunInterrupted
from tutelage.rewards import REWARDS, Answers, Judge, Reward, Setting
from tutelage.training import UPDATES, GradientUpdate, Observer, read_state, train
from tutelage.training.checkpoint_files import MANIFEST, fingerprint_of

CONSTRAINED = """
[[reward]]
name = "correct"

[[reward]]
name = "overlong"
weight = 0.5

[[reward]]
name = "length"
label = "tokens"
weight = { schedule = "linear", start = -1.0, stop = 0.0, steps = 4 }

[reward_combination]
name = "constrained"
thresholds = { tokens = 0.2 }
"""


def ended(
    folder: Path,
    tables: str,
    steps: int,
    *overrides: str,
    stop_at: int | None = None,
    meanwhile: Callable[[Path], object] = lambda run_file: None,
) -> Path:
    """The folder of a run that is over; stopped after a step, and `meanwhile` done, it was resumed."""
    folder.mkdir()
    path = write_run_file(folder, tables, steps=steps)
    if stop_at is not None:
        with pytest.raises(RunInterrupted):
            train(made(path, *overrides), StopAt(stop_at))
        meanwhile(path)
    train(made(path, *overrides, resume=stop_at is not None), Observer())
    return folder / "run"


def test_rewards_are_metrics_and_stand_beside_the_samples(tmp_path: Path) -> None:
    train(made(write_run_file(tmp_path, CONSTRAINED, steps=2)), Observer())
    explained = (Path(__file__).parents[2] / "docs/usage/metrics.md").read_text()
    for record in metrics(tmp_path / "run"):
        assert record["correct"] == record["reward/correct"]
        assert record["reward_slack/tokens"] == pytest.approx(0.2 - record["reward/tokens"])
        for name in record:
            if "reward" in name:
                assert f"`{re.sub('/.*', '/LABEL', name)}`" in explained
    (sample, *_) = map(json.loads, (tmp_path / "run/samples.jsonl").read_text().splitlines())
    rewards = sample["rewards"]
    assert set(rewards) == {"overlong", "tokens", "reward"} and rewards["overlong"] <= 0 < rewards["tokens"]
    own = 0.5 * (float(sample["correct"]) + 0.5 * rewards["overlong"]) - 0.5 * rewards["tokens"]
    assert rewards["reward"] == pytest.approx(own), "the multiplier begins at a half"


def test_what_nothing_learns_from_changes_no_weight(tmp_path: Path) -> None:
    runs = [metrics(ended(tmp_path / name, tables, 2)) for name, tables in (("plain", ""), ("rated", CONSTRAINED))]
    for plain, rated in zip(*runs, strict=True):
        assert {name: rated[name] for name in plain} | {"reward": rated["correct"]} == plain


def test_a_resumed_run_has_the_same_multipliers_and_bytes(tmp_path: Path) -> None:
    whole, resumed = ended(tmp_path / "whole", CONSTRAINED, 4), ended(tmp_path / "resumed", CONSTRAINED, 4, stop_at=1)
    assert metrics(whole) == metrics(resumed)
    checkpoints = [run / "checkpoints/step-000004" for run in (whole, resumed)]
    for checkpoint in checkpoints:
        state = read_state(checkpoint).rating
        assert set(state) == {"u", "velocity"} and state["u"]["tokens"] != 0
    one, other = ((checkpoint / "trainer.json").read_bytes() for checkpoint in checkpoints)
    assert one == other


def test_what_a_student_learns_from_combined_rewards_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """Multipliers decide about rewards, these about weights, and weights about the next rewards."""
    loss = '[[loss]]\nname = "clipped_surrogate"\nadvantage = { name = "group_reward", scale = "none" }\n'
    common = ["policy=student", "optimizer.warmup_steps=0", "rollout.samples_per_prompt=4"]
    weights = {}
    for name, stop_at, more in (
        ("whole", None, []),
        ("resumed", 1, []),
        ("otherwise", None, ["reward_combination.thresholds={tokens=0.9}"]),
    ):
        run = ended(tmp_path / name, CONSTRAINED + loss, 4, *common, *more, stop_at=stop_at)
        weights[name] = (run / "checkpoints/step-000004/model.safetensors").read_bytes()
        assert (tmp_path / name / "student/model.safetensors").read_bytes() != weights[name]
    assert weights["whole"] == weights["resumed"] != weights["otherwise"]


FOLLOWED = """
[[reward]]
name = "correct"

[[reward]]
name = "length"
label = "tokens"
weight = -0.5

[[loss]]
name = "policy_gradient"
advantage = { name = "group_reward", scale = "none" }

[[loss]]
name = "reverse_kl"
coefficient = 0.1
"""


@pytest.mark.parametrize(
    "combination",
    ['{name="gradient_influence", step_size=50.0}', '{name="conflict_averse", measured_every=2}'],
)
def test_weights_that_follow_gradients_are_metrics_and_resume_to_the_same_bytes(
    tmp_path: Path, combination: str
) -> None:
    common = ["policy=student", "rollout.samples_per_prompt=4", f"reward_combination={combination}"]
    common += ["data.verifier=tests.support.verdicts:has_an_odd_length", "optimizer.warmup_steps=0"]
    whole = ended(tmp_path / "whole", FOLLOWED, 4, *common)
    resumed = ended(tmp_path / "resumed", FOLLOWED, 4, *common, stop_at=1)
    assert metrics(whole) == metrics(resumed)
    for name in ("model.safetensors", "trainer.json"):
        one, other = ((run / "checkpoints/step-000004" / name).read_bytes() for run in (whole, resumed))
        assert one == other
    explained = (Path(__file__).parents[2] / "docs/usage/metrics.md").read_text()
    every = 2 if "measured_every" in combination else 1
    for step, record in enumerate(metrics(whole)):
        norms = [record.get(f"reward_gradient_norm/{label}") for label in ("correct", "tokens")]
        assert [norm is not None for norm in norms] == [step % every == 0] * 2
        assert ("reward_gradient_cosine" in record) == all(norms), "none where all answers to each prompt are as long"
        for metric in record:
            assert "reward" not in metric or f"`{re.sub('/.*', '/LABEL', metric)}`" in explained
    moved = [record["reward_multiplier/tokens"] for record in metrics(whole)]
    assert len(set(moved)) > 1 and all(value > 0 for value in moved)


def test_a_checkpoint_from_before_there_were_rewards_is_resumed(tmp_path: Path) -> None:
    def without_rating(run_file: Path) -> None:
        checkpoint = run_file.parent / "run/checkpoints/step-000002"
        state = json.loads((checkpoint / "trainer.json").read_text())
        assert state.pop("rating") == {}
        (checkpoint / "trainer.json").write_text(json.dumps(state))
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        manifest["trainer.json"] = fingerprint_of(checkpoint / "trainer.json")
        (checkpoint / MANIFEST).write_text(json.dumps(manifest))
        assert read_state(checkpoint).step == 2

    whole = ended(tmp_path / "whole", "", 4)
    assert metrics(ended(tmp_path / "resumed", "", 4, stop_at=1, meanwhile=without_rating)) == metrics(whole)


# --- rewards that fail -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailsLater(Reward):
    """Is NaN from the third batch on."""

    def opened(self, setting: Setting) -> Judge:
        batches = []

        def judge(answers: Answers) -> Tensor:
            batches.append(len(answers))
            return torch.full((len(answers),), torch.nan if len(batches) > 2 else 1.0)

        return judge


def test_a_reward_that_fails_ends_the_run_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "fails_later", FailsLater)
    path = write_run_file(tmp_path, '[[reward]]\nname = "fails_later"\n')
    with pytest.raises(
        RewardError, match=r"^the reward 'fails_later' is nan .* after 2 of 6 steps; the run is saved in"
    ):
        train(made(path), Observer())
    assert len(metrics(tmp_path / "run")) == 2 and (tmp_path / "run/checkpoints/step-000002").is_dir()


FUNCTION = """
def echo(prompt, response, answer):
    assert prompt.startswith("What is ") and float(answer) >= 0
    return len(response) / 100
"""


def test_a_function_without_a_verifier_gets_answers_and_must_stay_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = tmp_path / "my_rules.py"
    rules.write_text(FUNCTION)
    path = write_run_file(tmp_path, '[[reward]]\nname = "function"\nfunction = "my_rules:echo"\nlabel = "long"\n')
    with pytest.raises(RunInterrupted):
        train(made(path, "data.verifier="), StopAt(1))
    assert all(0 <= record["reward/long"] < 1 and "correct" not in record for record in metrics(tmp_path / "run"))
    rules.write_text(FUNCTION.replace("100", "50"))
    with pytest.raises(ConfigurationError, match=r"changed since it began: what the rewards read .* --accept rewards"):
        made(path, "data.verifier=", resume=True)
    rules.write_text(FUNCTION)
    train(made(path, "data.verifier=", resume=True), Observer())
    assert len(metrics(tmp_path / "run")) == 6


def test_a_function_that_fails_is_corrected_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = tmp_path / "my_rules.py"
    rules.write_text("def picky(prompt, response, answer):\n    return 1 / (answer != '18')\n")
    path = write_run_file(tmp_path, '[[reward]]\nname = "function"\nfunction = "my_rules:picky"\n', steps=4)
    with pytest.raises(
        RewardError, match=r"answer to problem sum/6: ZeroDivisionError: .* after 2 of 4 steps; the run"
    ):
        train(made(path), Observer())
    rules.write_text("def picky(prompt, response, answer):\n    return 1.0\n")
    run = build_run(load_config(path, QUICK), resume=True, accept=["rewards"])
    train(run, Observer())
    assert [record["reward"] for record in metrics(tmp_path / "run")] == [1.0] * 4


def test_a_reward_model_rates_a_run_that_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path / "rm")
    tables = f'[[reward]]\nname = "reward_model"\npath = "{model}"\n'

    def move(path: Path) -> None:
        path.write_text(path.read_text().replace(str(model), str(model.rename(tmp_path / "moved"))))

    whole = ended(tmp_path / "whole", tables, 3)
    resumed = ended(tmp_path / "resumed", tables, 3, stop_at=1, meanwhile=move)
    assert metrics(whole) == metrics(resumed) and metrics(whole)[0]["reward_std/reward_model"] > 0
    recorded = json.loads((whole / "fingerprints.json").read_text())["inputs"]["rewards"]
    assert set(recorded) == {"reward_model"} and recorded["reward_model"]["weights"].startswith("sha256")


def test_a_reward_model_that_is_none_is_refused_first(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path / "rm", num_labels=3)
    with pytest.raises(ModelError, match="has 3 outputs; expected one"):
        made(write_run_file(tmp_path, f'[[reward]]\nname = "reward_model"\npath = "{model}"\n'))
    assert not (tmp_path / "run").exists()


# --- what is refused before anything is computed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reward=corect",), r"^reward\[0\]\.name is 'corect'; expected one of correct"),
        (('reward=["correct", "correct"]',), r"2 rewards have the label 'correct'"),
        (
            ("reward=correct", "data.verifier="),
            r"the reward 'correct' is the verifier's verdict, but data\.verifier is",
        ),
        (("reward=correct", "data.answer_column="), r"verdict, but data\.answer_column is empty"),
        (("reward_combination=worst_case",), r"reward_combination is set, and there is no \[\[reward\]\]"),
        (
            ("reward=length", "reward_combination=best"),
            r"reward_combination\.name is 'best'; expected one of conflict_averse, constr",
        ),
        (("reward=length", "reward_combination=constrained"), r"reward_combination\.thresholds is \{\}; expected"),
        (
            (
                "reward=length",
                "reward_combination=constrained",
                "reward_combination={name='constrained',thresholds={a=1}}",
            ),
            r"thresholds has 'a', and the rewards are length",
        ),
        (('reward={name="length", weight=1e999}',), r"inf"),
        *(
            (
                ("reward=length", f"reward_combination={combination}", "rollout.samples_per_prompt=1"),
                r"normalises rewards among the answers to a prompt, but rollout\.samples_per_prompt is 1",
            )
            for combination in (
                "normalised_sum",
                "min_norm",
                "{name='worst_case', normalised=true}",
                "{name='lower_confidence_bound', normalised=true}",
                "{name='constrained', normalised=true, thresholds={length=0.5}}",
            )
        ),
        (
            ("reward=length", "reward_combination=gradient_influence", "loss=[{name='policy_gradient'}]"),
            r"compares the gradients of rewards, and there is one, 'length'; expected two or more",
        ),
        (
            ('reward=["length", "overlong"]', "reward_combination=conflict_averse"),
            r"ConflictAverse follows the gradient of each reward, and no loss has an advantage that reads the combined",
        ),
        (
            (
                'reward=["length", "overlong"]',
                "reward_combination=conflict_averse",
                "loss=[{name='policy_gradient', advantage={name='sum', terms=['group_reward','teacher_log_ratio']}}]",
            ),
            r"gradient of each reward, and the advantage Sum\(.*adds up something beside the combined reward",
        ),
        (
            ('reward=[{name="length"}, {name="overlong", cache_tokens=0}]',),
            r"^reward\[1\]\.cache_tokens is 0; expected",
        ),
        (('reward={name="format", pattern="("}',), r"^reward\[0\]\.pattern is '\(', which is no regular expression"),
        (
            ('reward={name="function", function="no_such_module:f"}',),
            r"^reward\[0\]\.function is 'no_such_module:f', wh",
        ),
        (
            ('reward={name="function", function="reward.rules"}',),
            r"^reward\[0\]\.function is 'reward\.rules'; expected",
        ),
        (('reward={name="function"}',), r"^reward\[0\]\.function is missing; 'function' needs it"),
        (('reward={name="overlong", cache_tokens=99}',), r"^reward\[0\]\.cache_tokens is 99, more than the 6 tokens"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_work_is_refused_first(tmp_path: Path, change: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(write_run_file(tmp_path), *change)
    assert not (tmp_path / "run").exists()


class MeasuresNothing(GradientUpdate):
    """An update that looks at no gradient of a single reward."""

    measures_rewards = False


def test_an_update_that_measures_no_gradients_is_refused_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UPDATES, "blind", MeasuresNothing)
    path = write_run_file(tmp_path, FOLLOWED)
    with pytest.raises(ConfigurationError, match=r"gradient of each reward, and the update 'blind' measures none"):
        made(path, "policy=student", "reward_combination=conflict_averse", "optimizer.name=blind")


@pytest.mark.parametrize("reward", ["correct", ["correct"], {"name": "correct"}, [{"name": "correct"}]], ids=repr)
def test_a_reward_is_written_in_short_or_in_full(reward: object) -> None:
    needed = {"student": "s", "teacher": "t", "data": "d.jsonl"}
    assert resolve_config({**needed, "reward": reward}).reward == [{"name": "correct"}]
    combined = resolve_config({**needed, "reward": reward, "reward_combination": "worst_case"})
    assert combined.reward_combination == {"name": "worst_case"}


def test_a_written_configuration_reads_back(tmp_path: Path) -> None:
    train(made(write_run_file(tmp_path, CONSTRAINED, steps=1)), Observer())
    config = load_config(tmp_path / "run/config.toml")
    assert [table["name"] for table in config.reward] == ["correct", "overlong", "length"]
    assert config.reward_combination["thresholds"] == {"tokens": 0.2}
