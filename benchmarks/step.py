"""How long is one training step, ours and TRL's, and what does a trust-region step cost on top of a plain one?

    python benchmarks/step.py [--trl-python PATH] [--json FILE] [--quick] [--only distillation|grpo]

The embedded pair (335 tokens of vocabulary), the same 64 prompts at every step, one answer each of at most 90 tokens,
one thread, the learning rate so small that the student stays what it is. Contenders take turns:

- plain OPD, with the demo's loss (the student's top 16 tokens and the rest as one event) and with TRL's (all tokens);
- a trust-region step at budget 0.01 and at 0.05, drafting as training does, and in lock-step (draft length 1);
- TRL's `DistillationTrainer`: answers by `generate` of transformers, reverse KL over all tokens.

And, by themselves, a step of GRPO without a teacher, ours and that of TRL's `GRPOTrainer`: 16 prompts, 4 answers each,
no KL term, one mean over all tokens, an answer's length as its reward.

TRL needs an environment of its own, which is not installed with this library:

    python -m venv trl-env && trl-env/bin/pip install torch==2.13.0 trl==1.16.0 transformers==5.23.0
    python benchmarks/step.py --trl-python trl-env/bin/python

Parts of a step: rollout (answers; a trust-region rollout asks the teacher at once), score (the teacher reads the
answers), loss (student forward, loss, backward), update (clipping, AdamW), other (metrics). TRL's rollout
includes its padding and bookkeeping of the batch.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from measuring import (
    CLOCKS,
    Measurement,
    Results,
    Worker,
    describe,
    machine,
    middle,
    ratio,
    run_on_threads,
    take_turns,
    wide_console,
    write_json,
)
from tutelage.demo import make_problems, student_path, teacher_path
from tutelage.losses import LOSSES
from tutelage.losses.tokens import ClippedSurrogate
from tutelage.models import load_language_model, load_tokenizer
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rewards import REWARDS, Rating
from tutelage.rollout import Limits, PairedEngine
from tutelage.runtime import LocalRuntime
from tutelage.targets import TARGETS
from tutelage.tasks import Problem
from tutelage.training import (
    BatchSource,
    GradientUpdate,
    OptimizerSettings,
    PromptOrder,
    Recipe,
    RolloutSettings,
    Stopwatch,
    UpdateContext,
    collect,
)
from tutelage.training.step_records import step_metrics
from tutelage.types import Prompt

NUM_ANSWERS, MAX_NEW_TOKENS = 64, 90
GROUP = 4  # answers to a prompt of GRPO
PROMPT_SEED = 81_000  # the packaged models were trained on other seeds
LEARNING_RATE = 1e-6
PARTS = ("rollout", "score", "loss", "update", "other")
PLAIN, TRL = "plain OPD", "TRL plain OPD"
OURS_GRPO, TRL_GRPO = "GRPO", "TRL GRPO"
METHODS = ("distillation", "grpo")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment with TRL; without it: ours only")
    parser.add_argument(
        "--trl-accumulation", type=int, default=4, help="pieces TRL's batch is learned in; 4 was fastest"
    )
    parser.add_argument(
        "--draft-length", default="estimated", help="of the drafting contenders: a number, auto, estimated"
    )
    parser.add_argument("--piece-tokens", type=int, default=2048, help="tokens in one forward of ours, score and loss")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a machine that is busy otherwise"
    )
    parser.add_argument("--only", choices=METHODS, help="one of the two comparisons; without it both")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    run_on_threads(options.threads)
    draft_length = int(options.draft_length) if options.draft_length.isdigit() else options.draft_length

    console, facts = wide_console(), machine()
    if options.trl_python is None:
        console.print(
            "TRL is not measured: --trl-python names no interpreter that has it (--help says how to make one)."
        )
    found, everything = {}, Results()
    for method in [options.only] if options.only else METHODS:
        if method == "grpo":
            contenders, references = {OURS_GRPO: grpo_step(options)}, {"TRL": TRL_GRPO}
        else:
            contenders, references = distillation_steps(options, draft_length), {"plain": PLAIN, "TRL": TRL}
        worker = None
        if options.trl_python is not None:
            worker = trl_worker(options, method)
            facts["trl"] = worker.hello
            contenders[references["TRL"]] = partial(asked, worker)
        rounds = 3 if options.quick else options.rounds
        results = take_turns(contenders, rounds, title=f"one step each: {method}", clock=options.clock, warmups=2)
        if worker is not None:
            worker.close()
        console.print(table(results, references, options.clock))
        found |= {name: summary_of(rows, results, references) for name, rows in results.items()}
        everything |= results
    console.print(describe(facts))
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("json", "trl_python")}
    write_json(options.json, {"machine": facts, "settings": settings, "summary": found, "rounds": everything})


def texts_of(count: int) -> list[str]:
    """Prompts."""
    return [problem.problem for problem in make_problems(count, PROMPT_SEED)]


def distillation_steps(options: argparse.Namespace, draft_length: int | str) -> dict[str, Any]:
    """Ours, by name."""
    top_k: dict[str, Any] = {"support": "student_top_k", "top_k": 16, "rest": "tail"}
    whole: dict[str, Any] = {"support": "full"}

    def ours(policy: Policy, draft_length: int | str = 1, divergence: dict[str, Any] = top_k) -> OurStep:
        recipe = Recipe(policy, TARGETS["teacher"](), (LOSSES["reverse_kl"](**divergence),))
        return OurStep(recipe, options, draft_length=draft_length)

    return {
        PLAIN: ours(Student()),
        "plain OPD, all tokens": ours(Student(), divergence=whole),
        "TRB 0.01": ours(TrustRegion(kl_radius=0.01), draft_length),
        "TRB 0.05": ours(TrustRegion(kl_radius=0.05), draft_length),
        "TRB 0.01, lock-step": ours(TrustRegion(kl_radius=0.01)),
        "TRB 0.05, lock-step": ours(TrustRegion(kl_radius=0.05)),
    }


def grpo_step(options: argparse.Namespace) -> OurStep:
    """Ours, as TRL's defaults are."""
    recipe = Recipe(Student(), TARGETS["teacher"](), (ClippedSurrogate(),))
    length = replace(REWARDS["length"](), label="length")
    problems = [Problem(str(place), text) for place, text in enumerate(texts_of(NUM_ANSWERS // GROUP))]
    rating = Rating([length], problems=problems, response_of=lambda rollout: "")
    return OurStep(recipe, options, group=GROUP, rating=rating)


def asked(worker: Worker, seed: int) -> Measurement:
    """A step of TRL's."""
    return with_other(worker.ask({"step": seed}))


def summary_of(rows: list[Measurement], results: Results, references: dict[str, str]) -> dict[str, float]:
    """Medians of a contender, and ratios to the references that were measured."""
    return {
        **{part: middle(rows, part) for part in ("seconds", *PARTS, "tokens")},
        **{
            f"{quantity}_over_{key.lower()}": ratio(rows, results[other], quantity)
            for key, other in references.items()
            if other in results
            for quantity in ("seconds", "seconds_per_token")
        },
    }


class OurStep:
    """One training step of the library, with a student of its own."""

    def __init__(
        self,
        recipe: Recipe,
        options: argparse.Namespace,
        *,
        draft_length: int | str = 1,
        group: int = 1,
        rating: Rating | None = None,
    ) -> None:
        piece_tokens = options.piece_tokens
        tokenizer = load_tokenizer(str(student_path()))
        student, teacher = (load_language_model(str(path), tokenizer) for path in (student_path(), teacher_path()))
        student.module.requires_grad_(True)
        teacher.module.requires_grad_(False)
        limits = Limits(score_tokens=piece_tokens)
        self.engine = PairedEngine(student, teacher, draft_length=draft_length, limits=limits)
        self.prompts = [Prompt(chat_tokens(tokenizer, text)) for text in texts_of(NUM_ANSWERS // group)]
        self.recipe = recipe
        self.runtime = LocalRuntime("cpu")
        self.now = CLOCKS[options.clock]
        self.parts: dict[str, float] = {}
        self.book(self.engine, "answer", "rollout")
        self.book(self.engine, "score", "score")
        self.book(self.runtime, "update", "update")
        rollout = RolloutSettings(
            prompts_per_step=len(self.prompts),
            samples_per_prompt=group,
            max_new_tokens=MAX_NEW_TOKENS,
            max_rows=NUM_ANSWERS,
            score_tokens=piece_tokens,
        )
        order = PromptOrder(len(self.prompts), len(self.prompts))
        self.source = BatchSource(
            self.engine.models,
            self.engine,
            self.engine,
            self.prompts,
            [None] * len(self.prompts),
            order,
            rollout,
            None,
            self.runtime,
            seed=0,
            rating=rating,
        )
        settings = OptimizerSettings(learning_rate=LEARNING_RATE, warmup_steps=0)
        self.context = UpdateContext(
            self.engine.models,
            self.runtime.learner(student),
            self.runtime,
            lambda _: settings,
            seed=0,
            micro_batch_tokens=piece_tokens,
        )
        self.update = GradientUpdate(self.context)

    def __call__(self, seed: int) -> Measurement:
        """Take one step and time its parts."""
        self.parts = dict.fromkeys(PARTS, 0.0)
        started = self.now()
        source, watch = replace(self.source, seed=seed), Stopwatch()
        self.update.context = replace(self.context, seed=seed)
        pending = self.update.prepare(0, self.recipe, partial(collect, source, 0, self.recipe, watch))
        self.parts["loss"] = self.now() - started - self.parts["rollout"] - self.parts["score"]
        numbers = self.update.commit(pending)
        watch.lap("update")
        step_metrics(pending.batch, self.recipe.policy, numbers, watch.seconds)
        return with_other({"seconds": self.now() - started, "tokens": pending.batch.num_tokens, **self.parts})

    def book(self, owner: Any, method: str, part: str) -> None:
        """Count the time inside a method as a part of the step."""
        inner = getattr(owner, method)

        def timed(*arguments: Any, **settings: Any) -> Any:
            started = self.now()
            result = inner(*arguments, **settings)
            self.parts[part] += self.now() - started
            return result

        object.__setattr__(owner, method, timed)


def chat_tokens(tokenizer: Any, text: str) -> list[int]:
    """A prompt as both sides read it."""
    message = [{"role": "user", "content": text}]
    tokens: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    return tokens


def with_other(parts: Measurement) -> Measurement:
    """Add what the named parts leave of the whole, and the price of a token, since policies differ in answer length."""
    named = sum(parts[name] for name in PARTS if name != "other")
    per_token = parts["seconds"] / parts["tokens"]
    return {**parts, "other": parts["seconds"] - named, "seconds_per_token": per_token}


def trl_worker(options: argparse.Namespace, method: str) -> Worker:
    """Start TRL in its own interpreter."""
    group = GROUP if method == "grpo" else 1
    job = {
        "kind": "grpo" if method == "grpo" else "step",
        "group": group,
        "student": str(student_path()),
        "teacher": str(teacher_path()),
        "prompts": texts_of(NUM_ANSWERS // group),
        "max_new_tokens": MAX_NEW_TOKENS,
        "learning_rate": LEARNING_RATE,
        "accumulation": options.trl_accumulation,
        "cache": None,
        "stop_probability": None,
        "threads": options.threads,
        "clock": options.clock,
        "seed": 0,
    }
    return Worker([str(options.trl_python), str(Path(__file__).with_name("trl_worker.py"))], job)


def table(results: Results, references: dict[str, str], clock: str) -> Table:
    """Medians over the rounds."""
    comparisons = [(o, each) for o in references if references[o] in results for each in ("", ", per token")]
    shown = Table(title=f"One training step: median milliseconds, {clock} clock", title_justify="left")
    for heading in ("", "step", *PARTS, "tokens", *(f"/ {other}{each}" for other, each in comparisons)):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    for name, rows in results.items():
        times = [f"{1e3 * middle(rows, part):.0f}" for part in ("seconds", *PARTS)]
        ratios = [
            f"{ratio(rows, results[references[other]], 'seconds_per_token' if each else 'seconds'):.2f}"
            for other, each in comparisons
        ]
        shown.add_row(name, *times, f"{middle(rows, 'tokens'):.0f}", *ratios)
    return shown


if __name__ == "__main__":
    main()
