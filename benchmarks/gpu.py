"""What does a GPU make of it?  Every figure that has a goal, in under six minutes, the most important ones first.

    python benchmarks/gpu.py [--json gpu.json] [--only decode loss ...]
    python benchmarks/gpu.py --tiny          # every section on a CPU, in seconds: does the script still run?

Made to be short. Each section is stopped at its limit, and a section that fails leaves one
line; what was measured by then is in the file and in the table. Models have random weights and the shapes of Qwen3: a
student of 1.7B and a teacher of 8B decode, one of 0.6B learns from one of 4B. Contenders take turns, and ratios are
medians of ratios within a round.

decode   the student alone, 64 rows, prompts and answers of 512 tokens: graphed, eager, `generate` of transformers; what
         the first call costs; the share of the time in which the GPU computes; single steps of both models
solve    a round's trust-region solve, judging and replacement, 64 rows with drafts of 4; its records
blend    trust-region rollouts with drafts, in lock-step, and the student alone
loss     tiled, on a recorded support, TRL's and Liger's where installed: over the bare projections, and memory
step     a plain step and a trust-region step; forecast of memory against what torch counted
trl      a step of TRL's `DistillationTrainer` on the same pair, where TRL is installed, against the plain step
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table
from transformers import GenerationConfig

import loss_forms
from measuring import Measurement, Results, describe, machine, middle, ratio, wide_console, write_json
from random_models import (
    QWEN3,
    TINY,
    TINY_TEACHER,
    VOCABULARY,
    RandomStep,
    random_module,
    random_prompts,
)
from tutelage.demo import make_problems, student_path
from tutelage.distributions import normalise
from tutelage.errors import in_short
from tutelage.kernels import Rows, read_rows
from tutelage.models import LanguageModel, llama_forward, load_tokenizer
from tutelage.models.steps import STEPS
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rollout import Limits, PairedEngine
from tutelage.rollout.decoding import drafts
from tutelage.rollout.decoding.statistics import student_statistics, teacher_statistics
from tutelage.rollout.limits import DEFAULT_SUPPORT_SIZE

GIB = 2**30
# Seconds of each section; with start and models below the limit of the whole, at which the script ends itself.
LIMITS = {"decode": 70, "solve": 25, "blend": 55, "loss": 50, "step": 60, "trl": 75}
TOTAL_LIMIT = 350
TINY_PATIENCE = 10  # times as long, on a CPU that does other things too
KL_RADIUS, DRAFT = 0.01, 4
PROMPT_SEED = 81_000


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be.

    Fields:
      text: what is measured.
      before: the same on one H200 before this was worked on; None = not known.
      bound: at most that, or at least that where `is_least`.
    """

    text: str
    before: float | None
    bound: float
    is_least: bool = False

    def is_reached(self, value: float) -> bool:
        """Whether a measured value is as good."""
        return value >= self.bound if self.is_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'at least' if self.is_least else 'at most'} {self.bound:g}"


GOALS = {
    "student": Goal("student alone, tokens/s", 3219, 12_000, is_least=True),
    "first_call": Goal("first call, seconds more than later ones", 11, 3),
    "busy": Goal("share of decoding in which the GPU computes", 0.10, 0.85, is_least=True),
    "solve": Goal("solve and judge a round of 64 x 4 rows, ms", 20.3, 1),
    "blend_over_student": Goal("TRB 0.01 / student alone", 0.40, 0.55, is_least=True),
    "blend_over_lockstep": Goal("TRB 0.01 / lock-step", 1.3, 1.8, is_least=True),
    "loss": Goal("loss / projections, 151,936 words", 3.7, 1.5),
    "loss_gib": Goal("memory of the loss, GiB", 1.99, 1.3),
    "gradient_error": Goal("error of its gradients / the naive form's", 1.0, 1.0),
    "support": Goal("loss on a recorded support / projections", 4.1, 1.0),
    "loss_wide": Goal("loss / projections, 248,320 words", None, 1.5),
    "loss_wide_gib": Goal("memory of that loss, GiB", None, 1.3),
    "trb_step": Goal("a TRB step / a plain one", 2.4, 1.5),
    "plain_over_trl": Goal("a plain step / TRL's", None, 0.5),
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is. Left out: as the goals have it."""

    rows: int = 64
    prompt_tokens: int = 512
    new_tokens: int = 512
    blend_tokens: int = 128
    vocabulary: int = VOCABULARY
    wide_vocabulary: int = 248_320
    loss_tokens: int = 8192
    loss_width: int = 2048
    error_tokens: int = 2048
    step_tokens: int = 256
    odd_vocabulary: int = 151_669


TINY_SIZES = Sizes(4, 12, 8, 8, 400, 600, 64, 32, 32, 8, 397)


class TimeUp(Exception):
    """A section has reached its limit."""


class WithStep(LanguageModel):
    """A model whose decode steps run as the member of `STEPS` called `step_name` runs them."""

    step_name = "eager"

    @property
    def _step_name(self) -> str:
        return self.step_name


def main() -> None:
    """Run the sections, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models, also on a CPU; the figures are not worth a look"
    )
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), help="some of the sections")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.exit(1, "gpu.py needs a CUDA device, and none is visible. --tiny runs every section on a CPU.\n")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, TINY_SIZES if options.tiny else Sizes(), options.json)
    bench.console.print(describe(bench.facts))
    watchdog = threading.Timer(TOTAL_LIMIT * (TINY_PATIENCE if options.tiny else 1), bench.give_up)
    watchdog.daemon = True
    watchdog.start()
    for name, section in SECTIONS.items():
        if options.only is None or name in options.only:
            with bench.section(name):
                section(bench)
    watchdog.cancel()
    bench.finish()


@dataclass
class Bench:
    """Where it runs, how large everything is, and what was found so far."""

    device: str
    sizes: Sizes
    path: Path | None
    found: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self.console, self.facts, self.started = wide_console(), machine(self.device), time.perf_counter()
        self.card = str(self.facts["device"])

    @property
    def is_tiny(self) -> bool:
        """Whether figures mean nothing."""
        return self.sizes is TINY_SIZES

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Let a section run until its limit, and go on whatever becomes of it."""
        limit = LIMITS[name] * (TINY_PATIENCE if self.is_tiny else 1)
        self.deadline = time.perf_counter() + limit
        try:
            with at_most(limit):
                yield
        except TimeUp:
            self.problems[name] = f"stopped after {limit} s"
        except Exception as problem:  # whatever it is belongs in the report, and the other sections go on
            self.problems[name] = f"{type(problem).__name__}: {in_short(problem)}"
        if name in self.problems:
            self.say(f"{name}: {self.problems[name]}")
        self.write()
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def left(self) -> float:
        """Seconds that the section still has."""
        return self.deadline - time.perf_counter()

    def say(self, text: str) -> None:
        """A line with the time."""
        self.console.print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", markup=False)

    def figure(self, key: str, value: float, remark: str = "") -> None:
        """Keep a figure that has a goal, and show it at once."""
        self.found[key] = value
        goal = GOALS[key]
        verdict = "" if self.is_tiny else " (reached)" if goal.is_reached(value) else " (missed)"
        self.say(f"{goal.text}: {value:.3g}, goal {goal}{verdict}{remark and '; ' + remark}  [{self.card}]")
        self.write()

    def detail(self, name: str, value: Any, shown: str) -> None:
        """Keep something else that was measured."""
        self.details[name] = value
        self.say(f"   {name}: {shown}  [{self.card}]")

    def write(self) -> None:
        """Everything so far."""
        content = {"machine": self.facts, "sizes": vars(self.sizes), "figures": self.found, "details": self.details}
        goals = {key: {**vars(goal), "measured": self.found.get(key)} for key, goal in GOALS.items()}
        write_json(self.path, {**content, "goals": goals, "problems": self.problems})

    def finish(self) -> None:
        """The table of goals."""
        title = "tiny models: these figures mean nothing" if self.is_tiny else self.card
        shown = Table(title=title, title_justify="left")
        for heading in ("measure", "before, on an H200", "goal", "measured", ""):
            shown.add_column(heading, justify="left" if heading in ("measure", "") else "right")
        for key, goal in GOALS.items():
            value, before = self.found.get(key), "" if goal.before is None else f"{goal.before:g}"
            verdict = "" if value is None or self.is_tiny else "reached" if goal.is_reached(value) else "missed"
            shown.add_row(goal.text, before, str(goal), "not measured" if value is None else f"{value:.3g}", verdict)
        self.console.print(shown)
        for name, problem in self.problems.items():
            self.console.print(f"- {name}: {problem}", markup=False)
        self.write()

    def give_up(self) -> None:
        """End the script at its limit, wherever it hangs."""
        self.problems["whole"] = f"ended after {TOTAL_LIMIT} s"
        self.finish()
        os._exit(0)

    # Contenders -------------------------------------------------------------------------------------------------------

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.synchronise()
        started = time.perf_counter()
        run()
        self.synchronise()
        return time.perf_counter() - started

    def median(self, run: Callable[[], Any], repeats: int = 10, warmups: int = 3) -> float:
        """Median seconds of a short call."""
        times = [self.timed(run) for _ in range(warmups + (2 if self.is_tiny else repeats))]
        return statistics.median(times[warmups:])

    def turns(
        self, contenders: Mapping[str, Callable[[int], int]], seconds: float, most: int = 3
    ) -> tuple[Results, dict[str, float]]:
        """Rounds in which all take turns, one at least and another only where it should still fit; and the first calls.

        Args:
          contenders: called with a seed; they return how many tokens they made.
          seconds: of all.
        """
        until = min(time.perf_counter() + seconds, self.deadline)
        counts: dict[str, int] = {}

        def call(name: str, seed: int) -> Measurement:
            def run() -> None:
                counts[name] = contenders[name](seed)

            taken = self.timed(run)
            return {"seconds": taken, "tokens": counts[name], "tokens_per_second": counts[name] / taken}

        first = {name: float(call(name, 0)["seconds"]) for name in contenders}
        results: Results = {name: [] for name in contenders}
        for number in range(most):
            started = time.perf_counter()
            for name in contenders:
                results[name].append(call(name, number + 1))
            if time.perf_counter() + (time.perf_counter() - started) > until:
                break
        return results, first

    def rollout(self, engine: PairedEngine, policy: Policy, prompts: Any, tokens: int) -> Callable[[int], int]:
        """A contender that answers all prompts."""
        return lambda seed: sum(map(len, engine.generate(policy, prompts, max_new_tokens=tokens, seed=seed)))

    # Models -----------------------------------------------------------------------------------------------------------

    @cached_property
    def modules(self) -> tuple[Any, Any]:
        """The pair that decodes."""
        shapes = (TINY, TINY_TEACHER) if self.is_tiny else (QWEN3["1.7B"], QWEN3["8B"])
        words = self.sizes.vocabulary
        student, teacher = (
            random_module(shape, device=self.device, vocabulary=words, seed=place) for place, shape in enumerate(shapes)
        )
        return student, teacher

    @property
    def ways(self) -> list[str]:
        """How decode steps are run here, the fastest first."""
        return [name for name in ("graphed", "eager") if name in STEPS]

    def pair(self, way: str) -> tuple[LanguageModel, LanguageModel]:
        """Student and teacher that decode in one way."""
        models = [
            WithStep(module, name=name) for module, name in zip(self.modules, ("student", "teacher"), strict=True)
        ]
        for model in models:
            model.step_name = way
        student, teacher = models
        return student, teacher

    def engine(self, way: str, draft_length: int | str | None = None) -> PairedEngine:
        """One that decodes in one way; with a teacher where there are drafts."""
        student, teacher = self.pair(way)
        limits = Limits(max_rows=self.sizes.rows)
        if draft_length is None:
            return PairedEngine(student, limits=limits)
        return PairedEngine(student, teacher, draft_length=draft_length, limits=limits)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeUp once the time is over."""

    def ring(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------------------------------------------------------- sections


def decode(bench: Bench) -> None:
    """The student alone."""
    sizes, best = bench.sizes, bench.ways[0]
    prompts = random_prompts(sizes.rows, sizes.prompt_tokens, sizes.vocabulary)
    best_engine = bench.engine(best)
    contender = bench.rollout(best_engine, Student(), prompts, sizes.new_tokens)
    results, first = bench.turns({best: contender}, bench.left / 3)
    speed, seconds = middle(results[best], "tokens_per_second"), middle(results[best], "seconds")
    bench.figure("student", speed, best)
    bench.figure("first_call", first[best] - seconds)
    if bench.device == "cuda":
        share = busy_share(bench, bench.rollout(best_engine, Student(), prompts, max(8, sizes.new_tokens // 4)))
        bench.figure("busy", share)

    for way in bench.ways:
        student, teacher = bench.pair(way)
        for model in (student, teacher):
            for num_new in (1, 4, 8):
                taken = 1e3 * bench.median(single_step(bench, model, num_new))
                bench.detail(f"{model.name}, {way}, a step of {num_new}", taken, f"{taken:.2f} ms")

    with patch.object(llama_forward, "layer_kernels", lambda states: None):
        student, _ = bench.pair(best)
        taken = 1e3 * bench.median(single_step(bench, student, 1))
        bench.detail(f"{student.name}, {best}, without kernels between products, a step of 1", taken, f"{taken:.2f} ms")

    # Others take several times as long, so their answers are shorter, and so are ours beside them.
    tokens = max(8, sizes.new_tokens // 4)
    contenders = {way: bench.rollout(bench.engine(way), Student(), prompts, tokens) for way in bench.ways}
    contenders["generate"] = generate(bench, prompts, tokens)
    results, _ = bench.turns(contenders, bench.left)
    for name, measured in results.items():
        speed, over = middle(measured, "tokens_per_second"), ratio(results[best], measured, "tokens_per_second")
        bench.detail(f"{name}, answers of {tokens}", speed, f"{speed:.0f} tokens/s; {best} is {over:.2f} times as fast")


def busy_share(bench: Bench, run: Callable[[int], int]) -> float:
    """Time in kernels over time on the wall."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]):  # the first one sets itself up
        torch.ones(1, device=bench.device).sum()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        wall = bench.timed(lambda: run(1))
    return float(sum(event.device_time_total for event in recorded.key_averages())) / 1e6 / wall


@torch.no_grad()
def single_step(bench: Bench, model: LanguageModel, num_new: int) -> Callable[[], Any]:
    """A step of some new tokens in each row, head included, with a filled cache."""
    rows, slots = bench.sizes.rows, bench.sizes.prompt_tokens
    cache = model.new_cache(rows, slots)
    tokens_BT = torch.ones(rows, num_new, dtype=torch.int64, device=bench.device)
    positions_BT = (slots - num_new + torch.arange(num_new, device=bench.device)).expand(rows, -1).contiguous()

    def run() -> None:
        with torch.no_grad():
            model.logits(model.hidden_cached(tokens_BT, positions_BT, cache, slots))

    return run


def generate(bench: Bench, prompts: Sequence[Sequence[int]], tokens: int) -> Callable[[int], int]:
    """`generate` of transformers with its default cache."""
    module, tokens_BT = bench.modules[0], torch.tensor(prompts, device=bench.device)
    config = GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
        pad_token_id=0,
        disable_compile=True,
    )

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        answered: torch.Tensor = module.generate(
            tokens_BT, attention_mask=torch.ones_like(tokens_BT), generation_config=config
        )
        return (answered.shape[1] - tokens_BT.shape[1]) * len(tokens_BT)

    return run


@torch.no_grad()
def solve(bench: Bench) -> None:
    """What a round does with both models' logits before the next one."""
    shape = (bench.sizes.rows, DRAFT)
    generator = torch.Generator(bench.device).manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=bench.device, dtype=torch.bfloat16)

    student_BLV, teacher_BLV = (drawn(*shape, bench.sizes.vocabulary) for _ in range(2))
    drafts_BL = torch.randint(bench.sizes.vocabulary, shape, generator=generator, device=bench.device)
    keeps_BL = torch.rand(shape, generator=generator, device=bench.device, dtype=torch.float64)
    places_BL = torch.zeros(shape, dtype=torch.int64, device=bench.device)
    policy = TrustRegion(kl_radius=KL_RADIUS)

    def judged() -> Any:
        behaviour = policy.propose(student_BLV, teacher_BLV, places_BL)
        return drafts.judge_drafts(Student().propose(student_BLV, None, places_BL), behaviour, drafts_BL, keeps_BL)

    bench.figure("solve", 1e3 * bench.median(judged))
    taken = 1e3 * bench.median(lambda: policy.propose(student_BLV, teacher_BLV, places_BL).diagnostics)
    bench.detail("the solve alone", taken, f"{taken:.2f} ms")
    if bench.device == "cuda":
        from tutelage.kernels import triton_rows

        # Two programs of a multiprocessor in place of one.
        with patch.multiple(triton_rows, MAX_BLOCK=2048, ROW_WARPS=8, ROW_REGISTERS=128):
            taken = 1e3 * bench.median(judged)
        bench.detail("solve and judge, blocks of 2,048 on 8 warps", taken, f"{taken:.2f} ms")
    # What records ask of these rows.
    for name, read in (("read once", read_rows), ("normalised", lambda rows: Rows(normalise(rows)))):
        taken = 1e3 * bench.median(partial(recorded, student_BLV.flatten(0, 1), teacher_BLV.flatten(0, 1), read))
        bench.detail(f"records of both sides, rows {name}", taken, f"{taken:.2f} ms")


def recorded(student_NV: torch.Tensor, teacher_NV: torch.Tensor, read: Callable[[torch.Tensor], Rows]) -> None:
    """As a round does after judging."""
    tokens_N = torch.zeros(len(student_NV), dtype=torch.int64, device=student_NV.device)
    of_student = student_statistics(read(student_NV), tokens_N, DEFAULT_SUPPORT_SIZE)
    teacher_statistics(read(teacher_NV), tokens_N, of_student["support_ids"])


def blend(bench: Bench) -> None:
    """A trust region, drafted and in lock-step, beside the student alone."""
    sizes, best, policy = bench.sizes, bench.ways[0], TrustRegion(kl_radius=KL_RADIUS)
    prompts = random_prompts(sizes.rows, sizes.prompt_tokens // 4, sizes.vocabulary, seed=1)
    contenders = {"student": bench.rollout(bench.engine(best), Student(), prompts, sizes.blend_tokens)}
    for name, draft_length in (("drafts", "estimated"), ("lock-step", 1)):
        engine = bench.engine(best, draft_length)
        contenders[name] = bench.rollout(engine, policy, prompts, sizes.blend_tokens)
    results, _ = bench.turns(contenders, bench.left)
    drafted = results["drafts"]
    bench.figure("blend_over_student", ratio(drafted, results["student"], "tokens_per_second"))
    bench.figure("blend_over_lockstep", ratio(drafted, results["lock-step"], "tokens_per_second"))
    for name, measured in results.items():
        speed = middle(measured, "tokens_per_second")
        bench.detail(f"{name}, answers of {sizes.blend_tokens}", speed, f"{speed:.0f} tokens/s")


def loss(bench: Bench) -> None:
    """Forms of the loss against the bare projections."""
    sizes = bench.sizes
    others = [
        name for name, package in (("TRL", "trl"), ("Liger", "liger_kernel")) if importlib.util.find_spec(package)
    ]
    if bench.device == "cpu" and "Liger" in others:
        others.remove("Liger")
    inputs = inputs_of(bench, sizes.vocabulary, sizes.loss_tokens)
    found = {form: form_cost(bench, inputs, form) for form in ("tiled", "tiled, top 16", *others)}
    bench.figure("loss", found["tiled"]["over_projections"])
    if bench.device == "cuda":
        bench.figure("loss_gib", found["tiled"]["extra_gib"])
    bench.figure("support", found["tiled, top 16"]["over_projections"])
    for name, each in found.items():
        text = f"{each['over_projections']:.2f} x the projections"
        bench.detail(f"loss, {name}", each, f"{text}, {each['extra_gib']:.2f} GiB" if "extra_gib" in each else text)
    del inputs

    # Against products in float32: the naive form's own logits are rounded to bfloat16.
    few, errors = inputs_of(bench, sizes.vocabulary, sizes.error_tokens), {}
    exact = gradients_of(few, "exact")
    for name in ("naive", "tiled", *others):
        pairs = zip(gradients_of(few, name), exact, strict=True)
        errors[name] = max(float((mine - right).norm() / right.norm()) for mine, right in pairs)
        bench.detail(f"gradient error, {name}", errors[name], f"{errors[name]:.1e}")
    bench.figure("gradient_error", errors["tiled"] / errors["naive"])
    del few, exact

    wide = form_cost(bench, inputs_of(bench, sizes.wide_vocabulary, sizes.loss_tokens), "tiled")
    bench.figure("loss_wide", wide["over_projections"])
    if bench.device == "cuda":
        bench.figure("loss_wide_gib", wide["extra_gib"])
    # Tokenizers have any number of words, this one Qwen3's; rows of an odd length are slow to multiply.
    odd = form_cost(bench, inputs_of(bench, sizes.odd_vocabulary, sizes.loss_tokens), "tiled")
    over = odd["seconds"] / found["tiled"]["seconds"]
    words = f"{sizes.odd_vocabulary:,} words"
    bench.detail(f"loss, tiled, {words}", over, f"{over:.2f} x the seconds of {sizes.vocabulary:,} words")


def inputs_of(bench: Bench, vocabulary: int, tokens: int) -> loss_forms.Inputs:
    """Hidden states and heads of both models."""
    job = {"device": bench.device, "dtype": "bfloat16", "width": bench.sizes.loss_width}
    return loss_forms.make_inputs({**job, "vocabulary": vocabulary, "tokens": tokens})


def form_cost(bench: Bench, inputs: loss_forms.Inputs, form: str) -> dict[str, float]:
    """Reverse KL in one form: time over the projections; on a GPU also the peak beyond what was there, once warm."""
    run, cost = loss_forms.FORMS[form](inputs, 1.0), {}
    loss_forms.learn(run, inputs)
    if bench.device == "cuda":
        inputs["hidden"].grad = inputs["weight"].grad = None
        before = loss_forms.reset_peak(is_cuda=True)
        loss_forms.learn(run, inputs)
        cost["extra_gib"] = (loss_forms.peak(is_cuda=True) - before) / GIB
    pairs = [
        (bench.timed(lambda: loss_forms.learn(run, inputs)), bench.timed(lambda: loss_forms.projections(inputs)))
        for _ in range(2 if bench.is_tiny else 5)
    ]
    over = statistics.median(mine / bare for mine, bare in pairs[1:])
    return {"over_projections": over, "seconds": statistics.median(mine for mine, _ in pairs), **cost}


def gradients_of(inputs: loss_forms.Inputs, form: str) -> list[torch.Tensor]:
    """Of hidden states and head, in float32."""
    loss_forms.learn(loss_forms.FORMS[form](inputs, 1.0), inputs)
    return [inputs[name].grad.float() for name in ("hidden", "weight")]


def step(bench: Bench) -> None:
    """A plain step and a trust-region step."""
    bench.__dict__.pop("modules", None)
    gc.collect()
    student, teacher = learning_pair(bench)
    models = LanguageModel(student, name="student", autocast=torch.bfloat16), LanguageModel(teacher, name="teacher")
    plain, trb = (our_step(bench, *models, policy) for policy in ("policy=student", f"policy.kl_radius={KL_RADIUS}"))
    measured: dict[str, list[Measurement]] = {"plain": [], "TRB": []}

    def contender(name: str, take: RandomStep) -> Callable[[int], int]:
        def run(seed: int) -> int:
            measured[name].append(take(seed))
            return int(measured[name][-1]["tokens"])

        return run

    results, _ = bench.turns({"plain": contender("plain", plain), "TRB": contender("TRB", trb)}, bench.left)
    bench.figure("trb_step", ratio(results["TRB"], results["plain"], "seconds"))
    for name, take in (("plain", plain), ("TRB", trb)):
        rows = measured[name][1:]
        parts = {key: middle(rows, key) for key in rows[0] if key != "tokens"}
        shown = ", ".join(f"{key.removeprefix('seconds_')} {value:.2f}" for key, value in parts.items())
        bench.detail(f"{name} step", parts, f"{shown}; micro-batches of {take.micro_batch_tokens} tokens")
        if "memory_gib" in parts:
            forecasts = take.memory.forecast(take.micro_batch_tokens)
            forecast = max(sum(phase.values()) for phase in forecasts.values()) / GIB
            counted = parts["memory_gib"] - forecasts["update"]["moments"] / GIB  # those of the other contender
            both = {"counted_gib": counted, "forecast_gib": forecast, "forecast": forecasts}
            text = f"counted {counted:.1f} GiB, forecast {forecast:.1f}, {counted / forecast:.2f} of it"
            bench.detail(f"{name} step, memory", both, text)
    bench.details["plain_seconds"] = middle(results["plain"], "seconds")


def learning_pair(bench: Bench) -> tuple[Any, Any]:
    """The pair that learns: the student in float32, which a GPU multiplies in bfloat16."""
    shapes = (TINY, TINY_TEACHER) if bench.is_tiny else (QWEN3["0.6B"], QWEN3["4B"])
    dtypes = (torch.float32, torch.bfloat16)
    student, teacher = (
        random_module(shape, device=bench.device, dtype=dtype, vocabulary=bench.sizes.vocabulary, seed=place)
        for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    )
    return student, teacher


def our_step(bench: Bench, student: LanguageModel, teacher: LanguageModel, policy: str) -> RandomStep:
    """One contender; the divergence is TRL's, over the whole vocabulary."""
    overrides = [
        policy,
        f"rollout.max_new_tokens={bench.sizes.step_tokens}",
        f"rollout.max_rows={bench.sizes.rows}",
        "divergence.support=full",
        "runtime.autocast=bfloat16",
        "optimizer.learning_rate=1e-6",
        "optimizer.warmup_steps=0",
    ]
    return RandomStep(student, teacher, chat_prompts(bench), overrides)


def chat_texts(bench: Bench) -> list[str]:
    """Word problems that the packaged tokenizer can write."""
    return [problem.problem for problem in make_problems(bench.sizes.rows, PROMPT_SEED)]


def chat_prompts(bench: Bench) -> list[list[int]]:
    """The same as tokens, as both trainers read them."""
    tokenizer = load_tokenizer(str(student_path()))
    messages = [[{"role": "user", "content": text}] for text in chat_texts(bench)]
    return [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in messages]


def trl(bench: Bench) -> None:
    """TRL's step on the same pair, prompts and lengths, learned in four pieces, its fastest."""
    if importlib.util.find_spec("trl") is None:
        bench.say("trl: not installed (`pip install trl==1.16.0`), so its step is not measured")
        return
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = learning_pair(bench)
    tokenizer = load_tokenizer(str(student_path()))
    tokenizer.padding_side = "left"
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            bench.synchronise()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.synchronise()
            seconds.append(time.perf_counter() - self.started)
            bench.say(f"   TRL: a step of {seconds[-1]:.2f} s  [{bench.card}]")
            report_trl(bench, seconds)

    with tempfile.TemporaryDirectory() as folder:
        settings = DistillationConfig(
            output_dir=folder,
            per_device_train_batch_size=bench.sizes.rows // 4,
            gradient_accumulation_steps=4,
            max_steps=4,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_grad_norm=1.0,
            max_completion_length=bench.sizes.step_tokens,
            temperature=1.0,
            beta=1.0,
            bf16=bench.device == "cuda",
            gradient_checkpointing=False,
            use_cpu=bench.device == "cpu",
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        rows = [{"prompt": [{"role": "user", "content": text}]} for text in chat_texts(bench)]
        trainer = DistillationTrainer(
            model=student.requires_grad_(True),
            teacher_model=teacher,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trainer.add_callback(Clock())
        trainer.train()


def report_trl(bench: Bench, seconds: Sequence[float]) -> None:
    """The ratio, from TRL's second step on: in the first one every length of the answers is new to cuDNN."""
    bench.details["trl_seconds"] = list(seconds)
    plain, later = bench.details.get("plain_seconds"), seconds[1:]
    if plain is not None and later:
        bench.figure(
            "plain_over_trl", plain / statistics.median(later), f"{len(later)} steps of TRL, the first left out"
        )


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "decode": decode,
    "solve": solve,
    "blend": blend,
    "loss": loss,
    "step": step,
    "trl": trl,
}


if __name__ == "__main__":
    main()
