"""`benchmarks/gpu.py` is for a card that is at hand for minutes, so it must not fail there for a reason of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_every_section_runs_on_a_cpu(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--json", str(tmp_path / "gpu.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["problems"] == {}
    # What torch counts on a GPU only, and what needs TRL.
    elsewhere = {"busy", "loss_gib", "loss_wide_gib", "plain_over_trl"}
    assert set(found["figures"]) | elsewhere == set(found["goals"])
    assert all(value >= 0 for value in found["figures"].values())
    assert "these figures mean nothing" in done.stdout
    for goal in found["goals"].values():
        assert goal["text"] in done.stdout


@pytest.fixture
def gpu(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("gpu")


def test_without_a_gpu_it_says_so_in_one_line(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert err == "gpu.py needs a CUDA device, and none is visible. --tiny runs every section on a CPU.\n"


def test_a_section_that_hangs_or_fails_leaves_a_line_and_what_was_found(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu.LIMITS, "decode", 0.2)
    bench = gpu.Bench("cpu", gpu.Sizes(), tmp_path / "gpu.json")
    with bench.section("decode"):
        bench.figure("student", 12_500.0)
        time.sleep(30)
    with bench.section("loss"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore lines")
    with bench.section("solve"):
        bench.figure("solve", 1.5)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["figures"] == {"student": 12_500.0, "solve": 1.5}
    assert found["problems"]["decode"] == "stopped after 0.2 s"
    assert found["problems"]["loss"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    goals = gpu.GOALS
    assert goals["student"].is_reached(12_500.0) and not goals["solve"].is_reached(1.5)
    assert sum(gpu.LIMITS.values()) < gpu.TOTAL_LIMIT < 360


def test_contenders_take_turns_while_there_is_time(gpu: Any) -> None:
    bench, calls = gpu.Bench("cpu", gpu.Sizes(), None), []

    def contender(name: str) -> Any:
        def run(seed: int) -> int:
            calls.append((name, seed))
            time.sleep(0.01)
            return 10

        return run

    bench.deadline = time.perf_counter() + 100
    results, first = bench.turns({"a": contender("a"), "b": contender("b")}, 50.0)
    assert calls == [(name, seed) for seed in range(4) for name in "ab"]
    assert [len(rows) for rows in results.values()] == [3, 3] and set(first) == {"a", "b"}
    assert 0 < results["a"][0]["tokens_per_second"] <= 1000
    results, _ = bench.turns({"a": contender("a")}, 0.0)
    assert len(results["a"]) == 1, "one round in any case"
