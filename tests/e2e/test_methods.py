"""Divergences and weightings from the run file to the update: a step each, on the tiny pair."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.training import Observer, train

METHODS = {
    "sampled tokens under a blend": ["divergence=sampled_reverse_kl", "divergence.baseline=leave_one_out"],
    "TrOPD": ["policy=student", "divergence=trust_split", "divergence.top_k=8", "weighting=uniform"],
    "TrOPD's mask": ["policy=student", "divergence=sampled_reverse_kl", "weighting=tropd"],
    "TIP": ["divergence=reverse_kl", "weighting=tip", "weighting.share=0.2"],
    "EOPD": ["policy=student", "divergence=entropy_aware"],
    "SinKD": ["divergence=sinkhorn", "divergence.group_tokens=4", "weighting=position_decay"],
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
