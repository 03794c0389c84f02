"""What do rewards add to a teacher, and a teacher to rewards?  Six methods on the packaged pair, by pass@1 to pass@64.

    python benchmarks/reward_study.py OUTPUT
    python benchmarks/reward_study.py OUTPUT --resume                # goes on where it was stopped
    python benchmarks/reward_study.py OUTPUT --regime drifting       # problems of four steps and a weaker student
    python benchmarks/reward_study.py OUTPUT --choose                # how SETTINGS were found

GRPO and F-GRPO learn from the verifier alone, plain OPD from the teacher alone, KDRL adds the two, RLAD puts the
teacher inside the ratio, OPD-then-RL has one after the other. Each is its recipe, moved to the packaged pair: 8 prompts
with 8 answers a step for all of them, so that a group is as large as the papers'. The rates were chosen with `--choose`
on a seed, prompts and problems of its own, see GRID: of GRPO's three the one with the highest pass@1 after the last
step (at 2e-4 it fell, at 6e-5 it rose), which all have that learn from the reward; plain OPD, the phase of OPD and
KDRL have the packaged world's own, at which KDRL rose as well. KDRL's coefficient of 0.1 and RLAD's share were not
searched.

Runs are those of `tutelage compare`, of one thread each, as many at once as there are workers. The student is judged
before the first step and after the last, with 64 answers to each problem, so pass@64 is measured and not extrapolated.
pass@k is the unbiased estimate, mean over problems; intervals are over seeds, paired with GRPO.

Budget: 1,280 answers of about 50 tokens to learn from and 2 x 1,024 to be judged by in a run, 40 seconds of a
processor; five seeds of six methods are 20 minutes of two idle threads, a regime (the drifting student takes a quarter
of an hour more). `--choose` takes four runs.

OUTPUT/REGIME/results.md has the table, results.json every number of every run, compared/ all that a comparison leaves.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from study import RECIPES, title, world
from tutelage.comparison import Outcome, Plan, World, make_methods, records_of, run_plan
from tutelage.config import read_run_file
from tutelage.evaluation import t_interval

STEPS, NUM_PROBLEMS, NUM_SAMPLES, SEEDS = 20, 16, 64, 5
ROLLOUT = {"prompts_per_step": 8, "samples_per_prompt": 8}
CHOOSING_SEED, CHOOSING_PROBLEMS, COMPARING_PROBLEMS = 100, 1, 0

# The method of every recipe, and its settings beside the world's.
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"optimizer.learning_rate": 6e-5},
    "f_grpo": {"optimizer.learning_rate": 6e-5},
    "kdrl": {"optimizer.learning_rate": 2e-4, "loss.1.coefficient": 0.1},
    "rlad": {"optimizer.learning_rate": 6e-5},
    "opd": {"optimizer.learning_rate": 2e-4},
    "opd_then_rl": {"optimizer.learning_rate": 6e-5, "phase.opd.learning_rate": 2e-4, "phase.opd.steps": STEPS // 2},
}
GRID: dict[str, list[dict[str, Any]]] = {
    "grpo": [{"optimizer.learning_rate": rate} for rate in (6e-5, 2e-4, 6e-4)],
    "kdrl": [SETTINGS["kdrl"]],
}
KS = (1, 4, 16, 64)


def main() -> None:
    """Choose or compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--regime", choices=("packaged", "drifting"), default="packaged")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    folder = options.output / options.regime
    if options.choose:
        compared(folder / "choosing", options, [CHOOSING_SEED], GRID)
    else:
        outcome = compared(folder / "compared", options, range(options.seeds), {k: [v] for k, v in SETTINGS.items()})
        write_results(folder, outcome)


def compared(
    folder: Path, options: Namespace, seeds: Sequence[int], settings: dict[str, list[dict[str, Any]]]
) -> Outcome:
    """A comparison of recipes with these settings, each under its own name where there is one of it."""
    where = reward_world(folder, options)
    named = {
        name if len(values) == 1 else title(name, value): (name, value)
        for name, values in settings.items()
        for value in values
    }
    tables, overrides = [], {}
    for name, (recipe, values) in named.items():
        table = {**read_run_file(RECIPES / f"{recipe}.toml"), "name": name}
        for key, value in values.items():
            if key.startswith("loss."):  # terms of a sum are no keys that an override reaches
                _, place, field = key.split(".")
                table["loss"][int(place)][field] = value
        tables.append(table)
        overrides[name] = [f"{key}={value}" for key, value in values.items() if not key.startswith("loss.")]
    methods = make_methods(tables, [], where, overrides)
    plan = Plan(folder, methods, list(seeds), world=where.name)
    resume = options.resume and folder.exists()
    return run_plan(plan, where, Console(highlight=False), workers=options.workers, resume=resume)


def reward_world(folder: Path, options: Namespace) -> World:
    """The world of `study.py`, with groups of eight and 64 answers to each problem, before and after."""
    sizes = Namespace(steps=STEPS, problems=NUM_PROBLEMS)
    seed = CHOOSING_PROBLEMS if options.choose else COMPARING_PROBLEMS
    found = world(options.regime, folder.parent, folder, seed, 1, sizes)
    tables = {key: dict(value) if isinstance(value, dict) else value for key, value in found.tables.items()}
    tables["rollout"] |= ROLLOUT
    tables["optimizer"] |= {"warmup_steps": 4}
    tables["evaluation"] |= {"num_samples": NUM_SAMPLES, "greedy": False, "every": 0}
    return World(f"{found.name}, 8 x 8 answers a step", tables, found.files)


def write_results(folder: Path, outcome: Outcome) -> None:
    """pass@k of every finished run, before and after, as numbers and as a table."""
    plan, runs = outcome.plan, []
    for method in plan.methods:
        for seed, measures in outcome.runs[method.name].items():
            before, after = records_of(plan.run_folder(method, seed) / "evaluations.jsonl")
            runs.append({"method": method.name, "seed": seed, "measures": measures, "before": before, "after": after})
    record = {"settings": SETTINGS, "missing": list(outcome.missing), "runs": runs}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    names = [f"pass@{k} %" for k in KS]
    lines = [f"| method | {' | '.join(names)} | length | seconds | tokens |", "|---" * (len(names) + 4) + "|"]
    for label, when, method in [("before", "before", runs[0]["method"])] + [
        (method.name, "after", method.name) for method in plan.methods
    ]:
        found = {run["seed"]: numbers_of(run, when) for run in runs if run["method"] == method}
        first = {run["seed"]: numbers_of(run, when) for run in runs if run["method"] == plan.methods[0].name}
        if found:
            cells = [cell(found, first, name) for name in next(iter(found.values()))]
            cells += ["-"] * (len(names) + 3 - len(cells))  # what a run cost is known after it
            lines.append(f"| {label} (n {len(found)}) | {' | '.join(cells)} |")
    text = "\n".join(lines)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def numbers_of(run: dict[str, Any], when: str) -> dict[str, float]:
    """A row of the table."""
    evaluation, measures = run[when], run["measures"]
    found = {str(k): 100 * evaluation["pass_at_k"][str(k)] for k in KS}
    found["length"] = evaluation["mean_response_tokens"]
    costs = ("seconds", "response_tokens") if when == "after" else ()
    return found | {name: measures[name] for name in costs}


def cell(found: dict[int, dict[str, float]], first: dict[int, dict[str, float]], name: str) -> str:
    """Mean ± deviation over seeds, below it the paired difference to the first method with its 95% interval."""
    values, form = [numbers[name] for numbers in found.values()], ",.0f" if name.endswith(("s", "tokens")) else ".1f"
    text = format(fmean(values), form) + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
    pairs = [numbers[name] - first[seed][name] for seed, numbers in found.items() if seed in first]
    interval = t_interval(pairs)
    if interval is None or not any(pairs):
        return text
    return f"{text}<br>{fmean(pairs):+{form}} [{interval[0]:+{form}}, {interval[1]:+{form}}]"


if __name__ == "__main__":
    main()
