"""Divergences and weightings from the run file to the update: a step each, on the tiny pair."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.support.quick_run import StopAt, metrics, metrics_of
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError, RunInterrupted
from tutelage.training import Observer, train

METHODS = {
    "sampled tokens under a blend": ["divergence=sampled_reverse_kl", "divergence.baseline=leave_one_out"],
    "TrOPD": ["policy=student", "divergence=trust_split", "divergence.top_k=8", "weighting=uniform"],
    "TrOPD's mask": ["policy=student", "divergence=sampled_reverse_kl", "weighting=tropd"],
    "TIP": ["divergence=reverse_kl", "weighting=tip", "weighting.share=0.2"],
    "EOPD": ["policy=student", "divergence=entropy_aware"],
    "SinKD": ["divergence=sinkhorn", "divergence.group_tokens=4", "weighting=position_decay"],
    "GRPO under a blend": [
        'reward=[{name = "length"}]',
        'loss=[{name = "clipped_surrogate", advantage = {name = "focal", gamma = 0.5}}, '
        '{name = "sampled_kl", to = "target"}]',
    ],
    "REINFORCE++ with a reference": [
        'reward=[{name = "length"}]',
        "policy=student",
        'loss=[{name = "policy_gradient", advantage = {name = "whitened_return", kl_coefficient = 0.1}}, '
        '{name = "sampled_kl"}, {name = "gated_imitation", coefficient = 0.1}]',
    ],
    "GKD": ["policy=student", "divergence=jsd", "divergence.support=union_top_k", "divergence.top_k=4"],
}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_file(tmp_path_factory.mktemp("methods"))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_a_step(run_file: Path, tmp_path: Path, name: str) -> None:
    overrides = [*METHODS[name], "steps=1", "evaluation.sets=[]", "checkpoint.every=9", f"output={tmp_path / 'run'}"]
    train(build_run(load_config(run_file, overrides)), Observer())
    (metrics,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert metrics["logprob_mismatch"] < 1e-4


def test_a_run_without_a_teacher_learns_from_rewards_and_is_resumed(tmp_path: Path) -> None:
    """Nothing is read of a teacher, nothing of one is written, and a second half gives the same bytes as one run."""
    path = write_run_file(tmp_path, steps=4)
    table = tomllib.loads(path.read_text())
    del table["teacher"]
    learning = {
        "reward": [{"name": "length", "scale_tokens": 6}],
        "loss": [{"name": "clipped_surrogate"}],
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0, "updates_per_batch": 2},
        "rollout": {**table["rollout"], "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 6},
    }
    for axis in ("policy", "divergence", "target"):
        table.pop(axis, None)
    path.write_text(tomli_w.dumps({**table, **learning}))
    whole = metrics_of(path, tmp_path / "whole")
    assert "[teacher]" not in (tmp_path / "whole/config.toml").read_text()
    assert not [name for record in whole for name in record if "teacher" in name]
    assert whole[-1]["reward"] > whole[0]["reward"], "longer answers were worth more"
    with pytest.raises(RunInterrupted):
        train(build_run(load_config(path, ["evaluation.sets=[]", f"output={tmp_path / 'halves'}"])), StopAt(1))
    train(build_run(load_config(tmp_path / "halves/config.toml"), resume=True), Observer())
    assert metrics(tmp_path / "halves") == whole
    weights = "checkpoints/step-000004/model.safetensors"
    assert (tmp_path / "halves" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_what_asks_a_teacher_is_refused_without_one(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    table = tomllib.loads(path.read_text())
    del table["teacher"]
    path.write_text(tomli_w.dumps(table))
    for overrides, message in {
        (): r"the policy TrustRegion.* asks the teacher at every token, but the run has no teacher\. Name one: --set",
        (
            "policy=student",
        ): r"divergence\.support is .*, which is for a comparison with a teacher, and the run has none",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            build_run(load_config(path, list(overrides)))
