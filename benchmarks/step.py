"""How long is one training step, ours and TRL's, and what does a trust-region step cost on top of a plain one?

    python benchmarks/step.py [--trl-python PATH] [--json FILE] [--quick]

The embedded pair (335 tokens of vocabulary), the same 64 prompts at every step, one answer each of at most 90 tokens,
one thread, the learning rate so small that the student stays what it is. Contenders take turns:

- plain OPD, with the demo's loss (the student's top 16 tokens and the rest as one event) and with TRL's (all tokens);
- a trust-region step at budget 0.01 and at 0.05, drafting as training does, and in lock-step (draft length 1);
- TRL's `DistillationTrainer`: answers by `generate` of transformers, reverse KL over all tokens.

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
from tutelage.models import load_language_model, load_tokenizer
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rollout import Limits, PairedEngine
from tutelage.runtime import LocalRuntime
from tutelage.targets import TARGETS
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

NUM_PROMPTS, MAX_NEW_TOKENS = 64, 90
PROMPT_SEED = 81_000  # the packaged models were trained on other seeds
LEARNING_RATE = 1e-6
PARTS = ("rollout", "score", "loss", "update", "other")
PLAIN, TRL = "plain OPD", "TRL plain OPD"


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
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    run_on_threads(options.threads)
    draft_length = int(options.draft_length) if options.draft_length.isdigit() else options.draft_length

    texts = [problem.problem for problem in make_problems(NUM_PROMPTS, PROMPT_SEED)]
    top_k: dict[str, Any] = {"support": "student_top_k", "top_k": 16, "rest": "tail"}
    everything: dict[str, Any] = {"support": "full"}

    def ours(policy: Policy, draft_length: int | str = 1, divergence: dict[str, Any] = top_k) -> OurStep:
        return OurStep(texts, policy, draft_length, divergence, options.piece_tokens, options.clock)

    contenders: dict[str, Any] = {
        PLAIN: ours(Student()),
        "plain OPD, all tokens": ours(Student(), divergence=everything),
        "TRB 0.01": ours(TrustRegion(kl_radius=0.01), draft_length),
        "TRB 0.05": ours(TrustRegion(kl_radius=0.05), draft_length),
        "TRB 0.01, lock-step": ours(TrustRegion(kl_radius=0.01)),
        "TRB 0.05, lock-step": ours(TrustRegion(kl_radius=0.05)),
    }
    console, facts = wide_console(), machine()
    worker = None
    if options.trl_python is None:
        console.print(
            "TRL is not measured: --trl-python names no interpreter that has it (--help says how to make one)."
        )
    else:
        worker = trl_worker(options, texts)
        facts["trl"] = worker.hello
        contenders[TRL] = lambda seed: with_other(worker.ask({"step": seed}))

    results = take_turns(
        contenders, 3 if options.quick else options.rounds, title="one step each", clock=options.clock, warmups=2
    )
    if worker is not None:
        worker.close()
    console.print(describe(facts))
    console.print(table(results, options.clock))
    summary = {
        name: {
            **{part: middle(rows, part) for part in ("seconds", *PARTS, "tokens")},
            **{
                f"{quantity}_over_{key}": ratio(rows, results[other], quantity)
                for other, key in ((PLAIN, "plain"), (TRL, "trl"))
                if other in results
                for quantity in ("seconds", "seconds_per_token")
            },
        }
        for name, rows in results.items()
    }
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("json", "trl_python")}
    write_json(options.json, {"machine": facts, "settings": settings, "summary": summary, "rounds": results})


class OurStep:
    """One training step of the library, with a student of its own."""

    def __init__(
        self,
        texts: list[str],
        policy: Policy,
        draft_length: int | str,
        divergence: dict[str, Any],
        piece_tokens: int,
        clock: str,
    ) -> None:
        tokenizer = load_tokenizer(str(student_path()))
        student, teacher = (load_language_model(str(path), tokenizer) for path in (student_path(), teacher_path()))
        student.module.requires_grad_(True)
        teacher.module.requires_grad_(False)
        limits = Limits(score_tokens=piece_tokens)
        self.engine = PairedEngine(student, teacher, draft_length=draft_length, limits=limits)
        self.prompts = [Prompt(chat_tokens(tokenizer, text)) for text in texts]
        self.recipe = Recipe(policy, TARGETS["teacher"](), (LOSSES["reverse_kl"](**divergence),))
        self.runtime = LocalRuntime("cpu")
        self.now = CLOCKS[clock]
        self.parts: dict[str, float] = {}
        self.book(self.engine, "answer", "rollout")
        self.book(self.engine, "score", "score")
        self.book(self.runtime, "update", "update")
        rollout = RolloutSettings(
            prompts_per_step=NUM_PROMPTS,
            samples_per_prompt=1,
            max_new_tokens=MAX_NEW_TOKENS,
            max_rows=NUM_PROMPTS,
            score_tokens=piece_tokens,
        )
        order = PromptOrder(NUM_PROMPTS, NUM_PROMPTS)
        self.source = BatchSource(
            self.engine.models,
            self.engine,
            self.engine,
            self.prompts,
            [None] * NUM_PROMPTS,
            order,
            rollout,
            None,
            self.runtime,
            seed=0,
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


def trl_worker(options: argparse.Namespace, texts: list[str]) -> Worker:
    """Start TRL in its own interpreter."""
    job = {
        "kind": "step",
        "student": str(student_path()),
        "teacher": str(teacher_path()),
        "prompts": texts,
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


def table(results: Results, clock: str) -> Table:
    """Medians over the rounds."""
    others = {"plain": PLAIN, "TRL": TRL}
    comparisons = [(o, each) for o in others if others[o] in results for each in ("", ", per token")]
    shown = Table(title=f"One training step: median milliseconds, {clock} clock", title_justify="left")
    for heading in ("", "step", *PARTS, "tokens", *(f"/ {other}{each}" for other, each in comparisons)):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    for name, rows in results.items():
        times = [f"{1e3 * middle(rows, part):.0f}" for part in ("seconds", *PARTS)]
        ratios = [
            f"{ratio(rows, results[others[other]], 'seconds_per_token' if each else 'seconds'):.2f}"
            for other, each in comparisons
        ]
        shown.add_row(name, *times, f"{middle(rows, 'tokens'):.0f}", *ratios)
    return shown


if __name__ == "__main__":
    main()
