"""Small run folders as a training run leaves them, made up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STEPS = 6


def write_run(folder: Path, *, name: str = "trb", seed: int = 0, steps: int = STEPS, budget: float = 0.05) -> Path:
    """A run of 6 steps, 3 of them with a budget, of which `steps` are done; two problems, looked at at 0, 3 and 6."""
    folder.mkdir(parents=True)
    text = f'name = "{name}"\noutput = "{folder}"\nseed = {seed}\nsteps = {STEPS}\n[policy]\nkl_radius = {budget}\n'
    (folder / "config.toml").write_text(text)
    write_lines(folder / "metrics.jsonl", (metrics_of(step, seed, budget) for step in range(steps)))
    looks = [step for step in (0, 3, 6) if step <= steps]
    write_lines(
        folder / "evaluations.jsonl",
        ({"step": step, "name": "sums", "pass_at_1": 0.1 * step + 0.01 * seed} for step in looks),
    )
    (folder / "evaluations").mkdir()
    for step in looks:
        right = {"one": step < 3, "two": step >= 3}  # one is lost at step 3, two is gained
        write_lines(
            folder / "evaluations" / f"step-{step:06d}-sums.jsonl",
            ({"problem_id": problem, "correct": is_right} for problem, is_right in right.items() for _ in range(2)),
        )
    write_lines(folder / "samples.jsonl", (sample_of(step, number) for step in range(steps) for number in (3, 8)))
    return folder


def metrics_of(step: int, seed: int, budget: float) -> dict[str, Any]:
    common = {
        "step": step, "loss": 1 / (step + 1), "reward": 0.1 * step, "teacher_logprob": -1.0, "teacher_entropy": 0.3,
        "response_tokens": 5.0 + seed, "seconds_rollout": 2.0, "seconds_update": 1.0, "seconds": 3.0,
    }  # fmt: skip
    return common | ({"kl_radius": budget, "blend_mean": 0.4, "kl_used": budget / 2} if step < 3 and budget else {})


def sample_of(step: int, number: int) -> dict[str, Any]:
    return {
        "step": step, "prompt_number": number, "sample": 0, "prompt": f"prompt {number} </script><b>bold</b>",
        "response": "one two", "answer": "2", "finished": True, "correct": number == 8,
        "tokens": {
            "text": ["one", " two", ""], "teacher_logprob": [-0.01, -2.0, -5.0], "student_logprob": [-0.1, -0.1, -0.1],
            "kl": [0.0, 0.02, 0.05], "replaced": [0, 1, 0],
        },
    }  # fmt: skip


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
