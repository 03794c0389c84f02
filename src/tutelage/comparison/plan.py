"""What is compared, fixed before the first step: methods, seeds, the checkpoint rule, and that all else is equal.

The plan is written to the comparison's folder with every configuration as resolved. A comparison
can only be continued as it is; more seeds may be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.comparison.running import Job
from tutelage.comparison.worlds import LEARNING, OWN_TEACHER, PRIVILEGE, World, in_world
from tutelage.config import (
    RunConfig,
    build_phases,
    load_evaluation_problems,
    resolve_config,
    settings_of,
    to_toml,
)
from tutelage.config.clock import DATE, dated
from tutelage.errors import ConfigurationError, OutputExistsError
from tutelage.files import write_whole
from tutelage.tasks import Columns, TemplateClock, load_problems, short_name

__all__ = [
    "CHECKPOINT_RULES",
    "PLAN",
    "Method",
    "Plan",
    "check_comparable",
    "make_methods",
    "open_folder",
    "shared_texts",
]

PLAN = "plan.json"
CHECKPOINT_RULES = {
    "last": "the weights after the last step",
    "best": "the step with the best evaluation, chosen on the very problems that are reported: its numbers are too "
    "high, the more so the more evaluations there are",
}
# What the methods of a comparison must share: which models and problems, how many, in which order.
SHARED = (
    "student",
    "teacher",
    "data",
    "evaluation",
    "steps",
    "rollout.prompts_per_step",
    "rollout.samples_per_prompt",
    "rollout.max_new_tokens",
)
# What makes a method, and what belongs to the single run.
OWN = (
    "name",
    "output",
    "seed",
    "policy",
    "target",
    "divergence",
    "loss",
    "weighting",
    "reward",
    "reward_combination",
    "phase",
    "reference",
    *(f"student.{key}" for key in LEARNING),
    *(f"teacher.{key}" for key in OWN_TEACHER),
    *(f"data.{key}" for key in PRIVILEGE),
)


@dataclass(frozen=True)
class Method:
    """One of the compared methods: a name, its configuration, and what a world changed in its run file."""

    name: str
    config: RunConfig
    changes: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A comparison, or a sweep, before anything runs.

    Fields:
      folder: where everything goes.
      methods: the first one is what the others are compared with.
      seeds: every method is run with each.
      checkpoint_rule: a key of `CHECKPOINT_RULES`.
      early_steps: first steps whose rollouts are judged.
      world: name of the world that the recipes were put in; None = their own.
      notes: facts about the comparison that are printed with its results.
      free_keys: in which the methods may differ although a comparison should not, such as those of a sweep's grid.
      allows_overlap: problems that are also trained on are a warning and not a refusal.
    """

    folder: Path
    methods: Sequence[Method]
    seeds: Sequence[int]
    checkpoint_rule: str = "last"
    early_steps: int = 10
    world: str | None = None
    notes: Sequence[str] = ()
    free_keys: Sequence[str] = ()
    allows_overlap: bool = False

    def run_folder(self, method: Method, seed: int) -> Path:
        """Where one run goes."""
        return self.folder / "runs" / method.name / f"seed-{seed}"

    def job(self, method: Method, seed: int) -> Job:
        """One run, as it is executed; its run file and its log stand beside its folder."""
        folder = self.run_folder(method, seed)
        run_file, log = (folder.with_name(f"{folder.name}.{ending}") for ending in ("toml", "log"))
        return Job(f"{method.name} seed {seed}", run_file, folder, log, method.config.steps)

    def jobs(self) -> list[Job]:
        """All runs, seed by seed, so that a comparison that is cut short has whole pairs."""
        return [self.job(method, seed) for seed in self.seeds for method in self.methods]


def make_methods(
    tables: Sequence[Mapping[str, Any]],
    overrides: Sequence[str],
    world: World | None,
    own_overrides: Mapping[str, Sequence[str]] | None = None,
) -> list[Method]:
    """Resolve the run files' tables: first the world's replacements, then the overrides.

    Args:
      overrides: `key.path=value` for all, `NAME:key.path=value` for the method of that name.
      own_overrides: further ones by name, such as the points of a grid; they are applied last.
    Raises:
      ConfigurationError: also for two methods of one name and for overrides of an unknown method.
    """
    names = [str(table["name"]) for table in tables]
    for name in names:
        if names.count(name) > 1 or name.startswith(".") or "/" in name or "\\" in name or not name:
            raise ConfigurationError(
                f"{names.count(name)} of the run files have the name {name!r}; methods are told apart by name, and "
                "folders are called by it. Give each run file a `name` of its own."
            )
    own: dict[str, list[str]] = {name: [] for name in names}
    for override in overrides:
        owner, colon, rest = override.partition(":")
        if not colon or "=" in owner:
            for values in own.values():
                values.append(override)
        elif owner in own:
            own[owner].append(rest)
        else:
            raise ConfigurationError(f"--set {override}: no method is called {owner!r}. There are {', '.join(names)}.")
    methods = []
    for name, table in zip(names, tables, strict=True):
        applied = [*own[name], *(own_overrides or {}).get(name, ())]
        overridden = {override.partition("=")[0].strip() for override in applied}
        try:
            moved, changes = (deepcopy(dict(table)), []) if world is None else in_world(table, world)
            changes = [change for change in changes if change.split(" ")[0] not in overridden]
            config = resolve_config(moved, applied)
            build_phases(config)
        except ConfigurationError as problem:
            is_incomplete = world is None and " is missing; a run needs it" in str(problem)
            hint = " Or give --world embedded for the packaged models and problems." if is_incomplete else ""
            raise ConfigurationError(f"{name}: {problem}{hint}") from problem
        methods.append(Method(name, config, changes))
    return methods


def check_comparable(methods: Sequence[Method], free: Sequence[str] = ()) -> list[str]:
    """Refuse methods that differ in more than the method; name the other settings in which they differ.

    Args:
      free: keys that may differ although they should not, such as those of a sweep's grid.
    Returns:
      one line per differing key that is neither shared nor part of the method, such as the learning rate.
    """
    if len(methods) < 2:
        return []
    flat = {method.name: settings_of(method.config) for method in methods}
    keys = sorted({key for values in flat.values() for key in values})
    unequal: list[str] = []
    notes: list[str] = []
    for key in keys:
        # A student that teaches itself has no other teacher that could be the same.
        asked = [each for each in methods if not (each.config.teacher.is_student and _is_in(key, ("teacher",)))]
        found = {each.name: flat[each.name].get(key) for each in asked}
        if (
            _is_in(key, OWN)
            or _is_in(key, free)
            or all(value == next(iter(found.values())) for value in found.values())
        ):
            continue
        line = f"{key} is {', '.join(f'{value!r} for {name}' for name, value in found.items())}"
        (unequal if _is_in(key, SHARED) else notes).append(line)
    if unequal:
        raise ConfigurationError(
            f"the run files differ in more than the method: {'; '.join(unequal)}. A comparison needs the same models, "
            "prompts, problems, steps and batch for all. Make them equal with --set KEY=VALUE, which holds for all "
            "methods, or with --world."
        )
    return notes


def shared_texts(config: RunConfig) -> list[str]:
    """Texts that are both trained and evaluated on, word for word but for spaces."""
    data = config.data
    prompts = load_problems(data.path, Columns(data.prompt_column, answer=None), split=data.split, limit=data.limit)
    trained = {" ".join(problem.text.split()) for problem in prompts}
    judged = [problem for item in config.evaluation.sets for problem in load_evaluation_problems(item)]
    return sorted(trained & {" ".join(problem.text.split()) for problem in judged})


def open_folder(plan: Plan, world: World | None, *, resume: bool) -> None:
    """Write the plan, the world's files and every run file before the first step; or check that they are the same.

    Raises:
      OutputExistsError: the folder exists, and `resume` is False.
      ConfigurationError: `resume`, and another comparison was begun there.
    """
    path = plan.folder / PLAN
    if plan.folder.exists() and not resume:
        raise OutputExistsError(
            f"the folder {plan.folder} already exists, and a comparison never overwrites one. Choose another with "
            "--output FOLDER, or continue that comparison with --resume."
        )
    described = _described(plan)
    date = TemplateClock().moment.isoformat()
    if resume:
        if not path.is_file():
            raise ConfigurationError(
                f"--resume: {plan.folder} holds no comparison (no plan.json). Start it without --resume, or choose "
                "another --output FOLDER."
            )
        before = json.loads(path.read_text())
        _check_unchanged(before, described, path)
        date = before.get(DATE)
    described[DATE] = date  # for chat templates that ask for it: runs on different days must read the same prompts
    for file, content in (world.files if world is not None else {}).items():
        _write_once(file, content)
    for method in plan.methods:
        for seed in plan.seeds:
            job = plan.job(method, seed)
            values = {"name": method.name, "seed": seed, "output": str(job.folder)}
            _write_once(job.run_file, to_toml(dated(method.config.model_copy(update=values), date)))
    write_whole(path, json.dumps(described, indent=2) + "\n")


def _described(plan: Plan) -> dict[str, Any]:
    def shown(method: Method) -> dict[str, Any]:
        values = settings_of(method.config)
        return {key: value for key, value in values.items() if key not in ("name", "seed", "output")}

    return {
        "methods": {method.name: shown(method) for method in plan.methods},
        "world": plan.world,
        "replaced": {method.name: list(method.changes) for method in plan.methods},
        "seeds": list(plan.seeds),
        "checkpoint_rule": plan.checkpoint_rule,
        "early_steps": plan.early_steps,
        "evaluation_sets": [item.name or short_name(item.path) for item in plan.methods[0].config.evaluation.sets],
        "notes": list(plan.notes),
    }


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    old, new = before["methods"], now["methods"]
    changed = []
    if list(old) != list(new):
        changed.append(f"the methods are {', '.join(new)}, were {', '.join(old)}")
    for name in [name for name in new if name in old]:
        for key in sorted(old[name].keys() | new[name].keys()):
            if old[name].get(key) != new[name].get(key):
                changed.append(f"{name}: {key} is {new[name].get(key)!r}, was {old[name].get(key)!r}")
    for key in ("world", "checkpoint_rule", "early_steps"):
        if before[key] != now[key]:
            changed.append(f"{key} is {now[key]!r}, was {before[key]!r}")
    gone = sorted(set(before["seeds"]) - set(now["seeds"]))
    if gone:
        changed.append(f"seeds {', '.join(map(str, gone))} are left out")
    if changed:
        raise ConfigurationError(
            f"--resume: {'; '.join(changed)} in {path}; settings are fixed before a comparison begins, and only seeds "
            "may be added. Undo the change, or start another comparison with --output FOLDER."
        )


def _write_once(path: Path, content: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def _is_in(key: str, roots: Sequence[str]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)
