"""What a run takes on a CUDA device: it is counted, it is near the forecast, and it is given back."""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import NEEDS_CUDA
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.models import LanguageModel
from tutelage.training import Observer, train

pytestmark = NEEDS_CUDA

MIB = 2**20


@pytest.fixture
def random_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("random_models")


def held() -> int:
    """Bytes that torch still holds for somebody."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


def run_once(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    overrides = ["runtime.device=cuda", "runtime.threads=1", "steps=3"]
    train(build_run(load_config(write_run_file(folder), overrides)), Observer())
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_every_step_says_what_torch_counted(tmp_path: Path) -> None:
    steps = run_once(tmp_path / "a")
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    assert len(steps) == 3 and all(0 < step["memory_gib"] < total for step in steps)


def test_a_run_gives_its_memory_back(tmp_path: Path) -> None:
    """Two runs leave as much as one: the libraries' workspaces, which stay, and nothing of the run."""
    before = held()
    run_once(tmp_path / "first")
    after_one = held()
    run_once(tmp_path / "second")
    assert held() <= after_one + MIB
    assert after_one <= before + 128 * MIB


def test_a_micro_batch_is_chosen_told_and_kept(tmp_path: Path) -> None:
    path = write_run_file(tmp_path)
    run = build_run(load_config(path, ["runtime.device=cuda", "steps=1", "evaluation.sets=[]"]))
    chosen = run.learning.micro_batch_tokens
    assert chosen in (1024, 2048, 4096, 8192, 16_384)
    assert any(f"runtime.micro_batch_tokens is left out: {chosen}" in message for message in run.messages)
    train(run, Observer())
    again = build_run(load_config(path, ["runtime.device=cuda", "steps=2", "evaluation.sets=[]"]), resume=True)
    assert again.learning.micro_batch_tokens == chosen
    again.folder.release()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["runtime.autocast=bfloat16"],
        ["runtime.gradient_checkpointing=true"],
        ["divergence.support=full"],
        ["divergence.support=full", "runtime.loss=chunked"],
    ],
    ids=lambda overrides: " ".join(overrides) or "plain",
)
def test_the_forecast_is_near_what_torch_counts(overrides: list[str], random_models: Any) -> None:
    words, tokens = 32_000, 8192
    shape = random_models.Shape(1024, 12, 16, 3072)
    autocast = torch.bfloat16 if "runtime.autocast=bfloat16" in overrides else None
    before = held()
    modules = [
        random_models.random_module(shape, device="cuda", dtype=torch.float32, vocabulary=words, seed=seed)
        for seed in (1, 2)
    ]
    student = LanguageModel(modules[0], name="student", autocast=autocast)
    prompts = random_models.random_prompts(tokens // 128, 64, words)
    sizes = ["rollout.max_new_tokens=64", f"runtime.micro_batch_tokens={tokens}", "policy=student"]
    step = random_models.RandomStep(student, LanguageModel(modules[1], name="teacher"), prompts, [*sizes, *overrides])
    step(0)
    counted = step(1)["memory_gib"] * 2**30 - before
    forecast = max(sum(parts.values()) for parts in step.memory.forecast(tokens).values())
    assert 0.65 < counted / forecast < 1.2
