"""Which method helps, on the packaged task and on a harder one? All methods of TRB's table, settings first, then seeds.

    python benchmarks/study.py OUTPUT [--regime packaged|drifting] [--seeds 5] [--steps 60] [--problems 250]

What is done was fixed before any difference between methods was looked at:

1. Choosing. Every setting of every family is run with two seeds on prompts and problems of their own. Of each family
   the setting with the highest mean pass@1 after the last step is kept.
2. Comparing. The kept settings are run with fresh seeds on other prompts and other problems. The last checkpoint
   counts.

packaged: the packaged pair. drifting: problems of four steps only, the longest there are, and a weaker student that
loses its way more often; the teacher, the packaged one, has never seen that. It was chosen by plain OPD alone, which
should start low and get somewhere: from 2% to about 15% sampled. The student takes a quarter of an hour to make.

Runs are processes of one thread, as many at once as there are cores. The same command with --resume goes on where it
was stopped. OUTPUT/REGIME/results.md has the tables, OUTPUT/REGIME/compared/curves.png the curves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.comparison import Outcome, Plan, World, make_methods, run_plan
from tutelage.config import read_run_file
from tutelage.demo import problem_lines
from tutelage.demo.embedded import embedded_world

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# Settings in the study's own 60 steps; the paper's grids, of which a corner suits a pair this small.
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "opd": [{}],
    "trb": [
        {"policy.kl_radius.start": radius, "policy.kl_radius.steps": n} for radius in (0.02, 0.05) for n in (8, 25)
    ],
    "fixed_budget": [{"policy.kl_radius": radius} for radius in (0.01, 0.05)],
    "skd": [{"policy.top_k": top_k, "policy.teacher_temperature": 0.2} for top_k in (2, 8)],
    "veto": [{"target.beta.start": beta} for beta in (0.4, 0.8)],
    "temperature_warmup": [{"policy.temperature.start": start, "policy.temperature.steps": 8} for start in (0.6, 0.8)],
    "sft_warmup": [{"phase.sft.steps": steps} for steps in (4, 8)],
}
CHOOSING_SEEDS, CHOOSING_PROBLEMS, COMPARING_PROBLEMS = (100, 101), 1, 0
DRIFTING_PROMPT_SEED, DRIFTING_PROBLEM_SEED = 61_000, 62_000
FOUR_STEPS = (4, 4)


def main() -> None:
    """Choose, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--regime", choices=("packaged", "drifting"), help="one of the two; without it both")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--problems", type=int, default=250)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    for regime in [options.regime] if options.regime else ["packaged", "drifting"]:
        study(options.output / regime, regime, options, Console(highlight=False))


def study(folder: Path, regime: str, options: argparse.Namespace, console: Console) -> None:
    """One regime: a comparison of settings, then one of methods."""
    tables = {name: read_run_file(RECIPES / f"{name}.toml") for name in FAMILIES}

    def compared(
        name: str, seed: int, seeds: list[int], settings: dict[str, list[dict[str, Any]]], looks: int
    ) -> Outcome:
        where = world(regime, folder, folder / name, seed, looks, options)
        named = {title(family, values): (family, values) for family in settings for values in settings[family]}
        methods = make_methods(
            [{**tables[family], "name": label} for label, (family, _) in named.items()],
            [],
            where,
            {label: [f"{key}={value}" for key, value in values.items()] for label, (_, values) in named.items()},
        )
        plan = Plan(folder / name, methods, seeds, world=where.name)
        is_there = options.resume and plan.folder.exists()
        return run_plan(plan, where, console, resume=is_there)

    # To choose, the end is enough; curves need looks in between.
    chosen = choose(compared("choosing", CHOOSING_PROBLEMS, list(CHOOSING_SEEDS), FAMILIES, looks=1))
    (folder / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    kept = {name: [chosen[name]] for name in FAMILIES}
    compared("compared", COMPARING_PROBLEMS, list(range(options.seeds)), kept, looks=4)
    (folder / "results.md").write_text(
        (folder / "compared" / "comparison.md").read_text(encoding="utf-8"), encoding="utf-8"
    )


def choose(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The setting of each family with the highest mean pass@1 after the last step; of equals the first."""
    best: dict[str, dict[str, Any]] = {}
    for family, settings in FAMILIES.items():
        means = [outcome.summaries[title(family, values)]["pass_at_1"].mean for values in settings]
        best[family] = settings[means.index(max(means))]
    return best


def title(family: str, values: dict[str, Any]) -> str:
    """A method's name: the family, and its settings where there are any."""
    return "-".join([family, *(str(value) for value in values.values())])


def world(regime: str, folder: Path, where: Path, seed: int, looks: int, options: argparse.Namespace) -> World:
    """The packaged world, or the one of the drifting student, with so many evaluations during a run."""
    data = where / "data"
    packaged = embedded_world(data, steps=options.steps, num_problems=options.problems, seed=seed)
    tables = {key: dict(value) if isinstance(value, dict) else value for key, value in packaged.tables.items()}
    tables["evaluation"]["every"] = max(1, options.steps // looks)
    if regime == "packaged":
        return World(packaged.name, tables, packaged.files)
    tables["student"] = {"path": str(drifter(folder))}
    tables["rollout"]["max_new_tokens"] = 110  # four steps take up to 20 tokens more than the packaged problems
    prompts, problems = packaged.files
    num_prompts = options.steps * tables["rollout"]["prompts_per_step"]
    files = {
        prompts: problem_lines(num_prompts, DRIFTING_PROMPT_SEED + seed, FOUR_STEPS),
        problems: problem_lines(options.problems, DRIFTING_PROBLEM_SEED + seed, FOUR_STEPS),
    }
    return World(
        f"drifting ({options.steps} steps, {options.problems} problems of 4 steps, seed {seed})", tables, files
    )


def drifter(folder: Path) -> Path:
    """The weaker student; made once."""
    path = folder / "pair" / "drifter"
    if not (path / "model.safetensors").exists():
        command = [sys.executable, "-m", "tutelage.demo.make_pair", str(folder / "pair"), "--only", "drifter"]
        subprocess.run(command, check=True)
    return path


if __name__ == "__main__":
    main()
