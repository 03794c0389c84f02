"""The packaged pair and its word problems as tables of a run file: the demo's world, and one to compare methods in.

Everything that is not the method is here: models, prompts, problems, and sizes that suit a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.comparison import World
from tutelage.demo import problem_lines, student_path, teacher_path
from tutelage.errors import ConfigurationError

__all__ = ["PROMPTS_PER_STEP", "SAMPLES_PER_PROMPT", "embedded_tables", "embedded_world"]

PROMPTS_PER_STEP, SAMPLES_PER_PROMPT = 16, 4
# The models were trained on other seeds than these, see `make_pair`.
PROMPT_SEED, PROBLEM_SEED = 71_000, 72_000
EVALUATIONS = 6  # during a run, the untrained student aside


def embedded_tables(folder: Path, *, steps: int, evaluate_every: int) -> dict[str, Any]:
    """Tables of a run file over the packaged pair; prompts.jsonl and problems.jsonl are expected in `folder`."""
    return {
        "steps": steps,
        "student": {"path": str(student_path())},
        "teacher": {"path": str(teacher_path())},
        "data": {"path": str(folder / "prompts.jsonl")},
        "rollout": {
            "prompts_per_step": PROMPTS_PER_STEP,
            "samples_per_prompt": SAMPLES_PER_PROMPT,
            "max_new_tokens": 90,
            "max_rows": 256,
            "score_tokens": 2048,
        },
        "optimizer": {"learning_rate": 2e-4, "warmup_steps": 15},
        "checkpoint": {"every": 20},
        "evaluation": {
            "sets": [{"path": str(folder / "problems.jsonl"), "name": "fresh problems"}],
            "every": evaluate_every,
            "num_samples": 4,
        },
        "runtime": {"device": "cpu", "threads": 1, "micro_batch_tokens": 2048},
    }


def embedded_files(folder: Path, *, steps: int, num_problems: int, seed: int) -> dict[Path, str]:
    """Prompts, each used once, and fresh problems; another seed, others of both."""
    return {
        folder / "prompts.jsonl": problem_lines(steps * PROMPTS_PER_STEP, PROMPT_SEED + seed),
        folder / "problems.jsonl": problem_lines(num_problems, PROBLEM_SEED + seed),
    }


def embedded_world(folder: Path, *, steps: int, num_problems: int, seed: int) -> World:
    """The world `embedded`, whose files are to lie in `folder`. Greedy answers are judged beside the sampled ones.

    Args:
      steps: of a run.
      num_problems: that are evaluated on.
      seed: of prompts and problems, at most 999 so that neither is ever the other's.
    """
    if not 0 <= seed < PROBLEM_SEED - PROMPT_SEED:
        raise ConfigurationError(f"the seed of the problems is {seed}; expected 0 to {PROBLEM_SEED - PROMPT_SEED - 1}.")
    tables = embedded_tables(folder, steps=steps, evaluate_every=max(1, steps // EVALUATIONS))
    tables["evaluation"]["greedy"] = True
    return World(
        f"embedded ({steps} steps, {num_problems} problems, problem seed {seed})",
        tables,
        embedded_files(folder, steps=steps, num_problems=num_problems, seed=seed),
    )
