"""How fast are answers made, and what does asking the teacher cost?

    python benchmarks/rollout.py [--only trb|student|scaling|vocabulary|gpu] [--trl-python PATH] [--json FILE] [--quick]
        [--compile]
    python benchmarks/rollout.py --profile trb|lockstep|student [--rows 64] [--kl-radius 0.01]

trb: the trust-region policy at three budgets, with drafts of 2, 4 and 8 tokens and of lengths chosen while running (by
measured costs: "auto"; by estimated ones, as training does: "estimated"), against lock-step (one teacher forward per
token) and against the plain student of the same engine. Batches of 1, 8 and 64; teachers whose single-token forward
costs as it does in the embedded pair, at least 5 and at least 10 times the student's. The costlier teachers are the
embedded one with layers added that change nothing, so acceptance stays real.

student: the plain student against `generate` of transformers (dynamic and static cache; prompts in the given order and
sorted by length), its continuous batching, and TRL's sampling of answers, on 64 rows and 512 prompts. Every answer ends
at every token with the same probability, so lengths are geometric (mean: a quarter of the limit), with some at the
limit. Tokens after an answer's stop token are never counted.

scaling: tokens per second of the student and of drafting at budget 0.01, at 1 to 128 rows.

vocabulary: the first table at four rows for two small random models with a real vocabulary, where drawing, solving and
judging cost more than the models.

gpu: the first table with Qwen3-1.7B and Qwen3-8B shapes and random weights in bfloat16, 1,024 new tokens. Needs CUDA
and about 50 GB of its memory.

Contenders take turns; numbers are medians over rounds, ratios are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import logging
import pstats
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from constant_hazard import ConstantHazardHead
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
from random_models import QWEN3, VOCABULARY, Shape, random_module
from tutelage.demo import make_problems, student_path, teacher_path
from tutelage.models import LanguageModel, load_language_model, load_tokenizer
from tutelage.policies import Policy, Student, TrustRegion
from tutelage.rollout import Limits, PairedEngine
from tutelage.types import Rollout

PROMPT_SEED = 82_000  # the packaged models were trained on other seeds
RADII = (0.001, 0.01, 0.05)
DRAFT_LENGTHS = (2, 4, 8)
COST_RATIOS = (None, 5.0, 10.0)  # None: the embedded teacher as it is
PROMPTS_OF_ROWS = {1: 4, 8: 16, 64: 96}
MAX_NEW_TOKENS = 90

STUDENT_ROWS, STUDENT_PROMPTS, STUDENT_LIMIT = 64, 512, 256
MEAN_SHARE = 4  # the mean answer would be the limit's quarter, were there no limit
# On a CPU its attention is dense over all rows' keys, so it gets fewer prompts.
CONTINUOUS_PROMPTS = 128

GPU_ROWS, GPU_PROMPT_TOKENS, GPU_NEW_TOKENS = 64, 128, 1024

LOCKSTEP, STUDENT = "lock-step", "student"
SELF_CHOSEN = ("auto", "estimated")


def main() -> None:
    """Measure what was asked for, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=("trb", "student", "scaling", "vocabulary", "gpu"), help="default: the first three"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a corner of the grid")
    parser.add_argument("--compile", action="store_true", help="decode through torch.compile, ours only")
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment with TRL, see step.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a machine that is busy otherwise"
    )
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--profile", choices=("trb", "lockstep", "student"), help="where the time of one rollout goes")
    parser.add_argument("--rows", type=int, default=64, help="of the profile")
    parser.add_argument("--kl-radius", type=float, default=0.01, help="of the profile")
    options = parser.parse_args()
    run_on_threads(options.threads)
    console = wide_console()
    if options.profile:
        profile(options, console)
        return
    if options.only == "gpu" and not torch.cuda.is_available():
        parser.exit(1, "The gpu section needs a CUDA device, and none is visible. The other sections run on the CPU.\n")

    facts = machine("cuda" if options.only == "gpu" else "cpu")
    console.print(describe(facts))
    sections: dict[str, Callable[[argparse.Namespace, Console], Any]] = {
        "trb": trb_section,
        "student": student_section,
        "scaling": scaling_section,
        "vocabulary": vocabulary_section,
        "gpu": gpu_section,
    }
    chosen = [options.only] if options.only else ["trb", "student", "scaling"]
    measured = {}
    for name in chosen:
        measured[name] = sections[name](options, console)
        # Written after each section, so that a late failure does not take the early ones along.
        write_json(
            options.json,
            {
                "machine": facts,
                "threads": options.threads,
                "clock": options.clock,
                "compile": options.compile,
                **measured,
            },
        )


# --------------------------------------------------------------------------------------------------- engines, timed


def rollout_contender(
    engine: PairedEngine, policy: Policy, prompts: Sequence[Sequence[int]], max_new_tokens: int, **settings: Any
) -> Callable[[int], Measurement]:
    """A contender that lets our engine answer the prompts once."""

    def run(seed: int) -> Measurement:
        rollouts = engine.generate(policy, prompts, max_new_tokens=max_new_tokens, seed=seed, **settings)
        synchronise(engine.student)
        return measurement_of(rollouts)

    return run


def measurement_of(rollouts: Sequence[Rollout]) -> Measurement:
    """Tokens, acceptance and teacher forwards of one call."""
    tokens = sum(len(rollout) for rollout in rollouts)
    measurement: Measurement = {"tokens": tokens}
    replaced = [rollout.replaced for rollout in rollouts if rollout.replaced is not None]
    if replaced:
        measurement["acceptance"] = 1 - int(torch.cat(replaced).sum()) / tokens
    forwards = [rollout.teacher_forwards for rollout in rollouts if rollout.teacher_forwards is not None]
    if sum(forwards):
        measurement["tokens_per_teacher_forward"] = tokens / sum(forwards)
    return measurement


def synchronise(model: LanguageModel) -> None:
    """Wait for a GPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@torch.no_grad()
def single_token_seconds(model: LanguageModel, rows: int, clock: str, filled: int = 128, repeats: int = 15) -> float:
    """Median time of a forward of one token per row, head included, with a filled cache."""
    cache = model.new_cache(rows, filled)
    tokens_B1 = torch.ones(rows, 1, dtype=torch.int64, device=model.device)
    positions_B1 = torch.full_like(tokens_B1, filled - 1)
    now, times = CLOCKS[clock], []
    for _ in range(repeats + 3):
        started = now()
        model.logits(model.hidden_cached(tokens_B1, positions_B1, cache, filled)[:, -1])
        synchronise(model)
        times.append(now() - started)
    return statistics.median(times[3:])


# ------------------------------------------------------------------------------------- trust region against lock-step


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, and the teacher's relative cost at a batch size."""

    student: LanguageModel
    teacher: LanguageModel
    teacher_layers: int
    cost_ratio: float


def trb_section(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Every batch and teacher of the grid."""
    rows_grid = (8,) if options.quick else tuple(PROMPTS_OF_ROWS)
    cost_grid = COST_RATIOS[:2] if options.quick else COST_RATIOS
    radii = RADII[1:2] if options.quick else RADII
    records: list[dict[str, Any]] = []
    for rows in rows_grid:
        for at_least in cost_grid:
            pair = pair_of_cost(at_least, rows, options)
            prompts = demo_prompts(PROMPTS_OF_ROWS[rows])
            # Shown as soon as it is known: the whole grid takes a while.
            shown = trb_table("Trust-region rollouts of the embedded pair")
            records += measure_trb(pair, prompts, rows, radii, MAX_NEW_TOKENS, options, shown)
            console.print(shown)
    for name in SELF_CHOSEN:
        shares = [record["contenders"][name]["over_best_fixed"] for record in records]
        console.print(f"{name}: between {min(shares):.2f} and {max(shares):.2f} of the best fixed draft length's speed")
    return records


def measure_trb(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    rows: int,
    radii: Sequence[float],
    max_new_tokens: int,
    options: argparse.Namespace,
    shown: Table,
) -> list[dict[str, Any]]:
    """One batch size and one pair: student, lock-step, fixed and self-chosen drafts, in turns."""
    contenders = {
        STUDENT: rollout_contender(
            PairedEngine(pair.student, limits=Limits(max_rows=rows)), Student(), prompts, max_new_tokens
        )
    }
    fixed: dict[str, int | str] = {LOCKSTEP: 1, **{f"draft {n}": n for n in DRAFT_LENGTHS}}
    choices = {**fixed, **{name: name for name in SELF_CHOSEN}}
    for radius in radii:
        for name, draft_length in choices.items():
            engine = PairedEngine(pair.student, pair.teacher, draft_length=draft_length, limits=Limits(max_rows=rows))
            policy = TrustRegion(kl_radius=radius)
            contenders[f"{name} at {radius}"] = rollout_contender(engine, policy, prompts, max_new_tokens)
    title = f"{rows} rows, teacher {pair.cost_ratio:.1f}x"
    results = take_turns(contenders, options.rounds, title=title, clock=options.clock)

    records = []
    for radius in radii:
        of = {name: results[f"{name} at {radius}"] for name in choices}
        speeds = {name: middle(of[name], "tokens_per_second") for name in fixed}
        best = max(speeds, key=speeds.__getitem__)
        record: dict[str, Any] = {
            "rows": rows,
            "num_prompts": len(prompts),
            "cost_ratio": pair.cost_ratio,
            "teacher_layers": pair.teacher_layers,
            "kl_radius": radius,
            "best_fixed": best,
            "student_tokens_per_second": middle(results[STUDENT], "tokens_per_second"),
            "contenders": {},
            "measurements": {STUDENT: results[STUDENT], **of},
        }
        for name, measurements in of.items():
            record["contenders"][name] = {
                "tokens_per_second": middle(measurements, "tokens_per_second"),
                "over_lockstep": ratio(measurements, of[LOCKSTEP], "tokens_per_second"),
                "over_student": ratio(measurements, results[STUDENT], "tokens_per_second"),
                "over_best_fixed": ratio(measurements, of[best], "tokens_per_second"),
                **{
                    quantity: middle(measurements, quantity)
                    for quantity in ("acceptance", "tokens_per_teacher_forward")
                    if all(quantity in measurement for measurement in measurements)
                },
            }
        records.append(record)
        add_trb_rows(shown, record)
    return records


def trb_table(title: str) -> Table:
    """The columns of the trust-region tables."""
    shown = Table(title=title, title_justify="left")
    for heading in (
        "rows",
        "teacher / student",
        "budget",
        "drafts",
        "accepted",
        "tokens / teacher forward",
        "tokens / s",
        "/ lock-step",
        "/ student",
        "/ best fixed",
    ):
        shown.add_column(heading, justify="left" if heading == "drafts" else "right")
    return shown


def add_trb_rows(shown: Table, record: dict[str, Any]) -> None:
    """One line per way of drafting."""
    first = (str(record["rows"]), f"{record['cost_ratio']:.1f}", str(record["kl_radius"]))
    for place, (name, numbers) in enumerate(record["contenders"].items()):
        is_last = place + 1 == len(record["contenders"])
        shown.add_row(
            *(first if place == 0 else ("", "", "")),
            f"{name} *" if name == record["best_fixed"] else name,
            _optional(numbers.get("acceptance"), ".3f"),
            _optional(numbers.get("tokens_per_teacher_forward"), ".2f"),
            f"{numbers['tokens_per_second']:.0f}",
            f"{numbers['over_lockstep']:.2f}",
            f"{numbers['over_student']:.2f}",
            f"{numbers['over_best_fixed']:.2f}",
            end_section=is_last,
        )


def _optional(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def demo_prompts(number: int) -> list[list[int]]:
    """Word problems as the embedded pair reads them."""
    tokenizer = load_tokenizer(str(student_path()))
    messages = [[{"role": "user", "content": p.problem}] for p in make_problems(number, PROMPT_SEED)]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages]


def demo_pair(compiles: bool) -> tuple[LanguageModel, LanguageModel]:
    """The embedded student and teacher."""
    tokenizer = load_tokenizer(str(student_path()))
    student, teacher = (load_language_model(str(path), tokenizer) for path in (student_path(), teacher_path()))
    student.compile = teacher.compile = compiles
    return student, teacher


def pair_of_cost(at_least: float | None, rows: int, options: argparse.Namespace) -> Pair:
    """The embedded pair, the teacher deepened until it costs enough at this batch size."""
    student, teacher = demo_pair(options.compile)
    num_layers = teacher.config.num_hidden_layers

    def cost_ratio(model: LanguageModel) -> float:
        pairs = [[single_token_seconds(m, rows, options.clock) for m in (model, student)] for _ in range(3)]
        return statistics.median(dear / cheap for dear, cheap in pairs)

    if at_least is None:
        return Pair(student, teacher, num_layers, cost_ratio(teacher))
    # Cost is a line in the number of layers; two points give it, and a tenth on top forgives their noise.
    few, many = num_layers + 4, num_layers + 20
    of_few, of_many = (cost_ratio(deepened(teacher, layers)) for layers in (few, many))
    slope = max((of_many - of_few) / (many - few), 1e-3)
    layers = max(num_layers, round(few + (1.1 * at_least - of_few) / slope))
    dear = deepened(teacher, layers)
    return Pair(student, dear, layers, cost_ratio(dear))


def deepened(model: LanguageModel, num_layers: int) -> LanguageModel:
    """The same function at a higher price: layers are added whose attention and MLP write zeros to the residual."""
    module = copy.deepcopy(model.module)
    layers = module.model.layers
    for index in range(len(layers), num_layers):
        layer = copy.deepcopy(layers[0])
        layer.self_attn.layer_idx = index
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.zeros_(projection.weight)
        layers.append(layer)
    module.config.num_hidden_layers = num_layers
    module.config.layer_types = ["full_attention"] * num_layers
    name = f"{model.name}, {num_layers} layers"
    return LanguageModel(module, model.tokenizer, model.stop_ids, name, compile=model.compile)


# --------------------------------------------------------------------------------------------- plain student


def student_section(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Our engine against others that sample from a single model."""
    num_prompts = STUDENT_PROMPTS // 4 if options.quick else STUDENT_PROMPTS
    stop_probability = MEAN_SHARE / STUDENT_LIMIT
    prompts = demo_prompts(num_prompts)
    by_length = sorted(prompts, key=len)
    model = student_that_stops(stop_probability)
    served = LanguageModel(model, stop_ids=(model.config.eos_token_id,), compile=options.compile)
    engine = PairedEngine(served, limits=Limits(max_rows=STUDENT_ROWS))
    contenders: dict[str, Callable[[int], Measurement]] = {
        "ours": rollout_contender(engine, Student(), prompts, STUDENT_LIMIT),
        "ours, tokens only": rollout_contender(engine, Student(), prompts, STUDENT_LIMIT, records_statistics=False),
        "generate": generate_contender(model, prompts, "dynamic"),
        "generate, static cache": generate_contender(model, prompts, "static"),
        "generate, sorted": generate_contender(model, by_length, "dynamic"),
    }
    notes: list[str] = []
    continuous = continuous_contender(student_that_stops(stop_probability), prompts[:CONTINUOUS_PROMPTS])
    problem = first_problem(continuous)
    if problem is None:
        contenders["continuous batching"] = continuous
        notes.append(
            f"continuous batching answers {min(CONTINUOUS_PROMPTS, num_prompts)} of the prompts: its attention on a "
            "CPU is dense over the keys of all rows. Set-up is not counted"
        )
    else:
        notes.append(f"continuous batching does not run here: {problem}")
    worker = None
    if options.trl_python is None:
        notes.append("TRL is not measured: --trl-python names no interpreter that has it (see step.py --help)")
    else:
        worker = trl_worker(options, num_prompts, stop_probability)
        contenders["TRL"] = lambda seed: worker.ask({"seed": seed})
    results = take_turns(contenders, options.rounds, title=f"{num_prompts} prompts", clock=options.clock, warmups=0)
    if worker is not None:
        worker.close()

    shown = Table(
        title=f"Plain student: {STUDENT_ROWS} rows, {num_prompts} prompts, at most {STUDENT_LIMIT} new tokens, "
        f"every token the last with probability 1/{STUDENT_LIMIT // MEAN_SHARE}",
        title_justify="left",
    )
    for heading in ("", "seconds", "useful tokens", "tokens / s", "/ generate", "/ TRL"):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    summary = {}
    for name, measurements in results.items():
        numbers = {quantity: middle(measurements, quantity) for quantity in ("seconds", "tokens", "tokens_per_second")}
        for other, key in (("generate", "over_generate"), ("TRL", "over_trl")):
            if other in results:
                numbers[key] = ratio(measurements, results[other], "tokens_per_second")
        summary[name] = numbers
        shown.add_row(
            name,
            f"{numbers['seconds']:.2f}",
            f"{numbers['tokens']:.0f}",
            f"{numbers['tokens_per_second']:.0f}",
            f"{numbers['over_generate']:.2f}",
            _optional(numbers.get("over_trl"), ".2f"),
        )
    console.print(shown)
    for note in notes:
        console.print(f"- {note}")
    return {"summary": summary, "notes": notes, "rounds": results}


def student_that_stops(stop_probability: float) -> Any:
    """The embedded student, whose answers end at every token with the same probability."""
    module: Any = AutoModelForCausalLM.from_pretrained(student_path()).eval()
    head = ConstantHazardHead(module.get_output_embeddings(), module.config.eos_token_id, stop_probability)
    module.set_output_embeddings(head)
    return module


def generate_contender(module: Any, prompts: Sequence[Sequence[int]], cache: str) -> Callable[[int], Measurement]:
    """`generate` on left-padded batches in the given order."""
    stop, pad = module.config.eos_token_id, module.config.pad_token_id
    settings = sampling_settings(module)
    settings.cache_implementation = cache

    @torch.no_grad()
    def run(seed: int) -> Measurement:
        torch.manual_seed(seed)
        num_tokens = 0
        for first in range(0, len(prompts), STUDENT_ROWS):
            batch = prompts[first : first + STUDENT_ROWS]
            longest = max(map(len, batch))
            tokens_BT = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in batch])
            mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
            answers_BT = module.generate(input_ids=tokens_BT, attention_mask=mask_BT, generation_config=settings)
            num_tokens += useful_tokens(answers_BT[:, longest:], stop)
        return {"tokens": num_tokens}

    return run


def continuous_contender(module: Any, prompts: Sequence[Sequence[int]]) -> Callable[[int], Measurement]:
    """Continuous batching of transformers, with pages and rows set to what the benchmark needs."""
    page = 32
    pages_per_row = -(-(max(map(len, prompts)) + STUDENT_LIMIT) // page) + 1
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    settings = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=STUDENT_ROWS * pages_per_row,
        max_batch_tokens=2048,
        max_requests_per_batch=STUDENT_ROWS,
        use_cuda_graph=False,
        use_async_batching=False,
        allow_block_sharing=False,
    )

    def run(seed: int) -> Measurement:
        torch.manual_seed(seed)
        # The manager is kept from call to call, so its set-up falls into the first, which is not counted.
        answers = module.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=sampling_settings(module),
            continuous_batching_config=settings,
            persistent_manager=True,
        )
        if len(answers) < len(prompts):
            raise RuntimeError(f"only {len(answers)} of {len(prompts)} prompts were answered")
        tokens = sum(len(answer.generated_tokens) for answer in answers.values())
        return {"tokens": tokens}

    return run


def first_problem(contender: Callable[[int], Measurement]) -> str | None:
    """What stops a contender that may not work on this device; None if it works."""
    try:
        contender(99)
    except Exception as problem:  # whatever it is belongs in the report, and the other contenders go on
        return f"{type(problem).__name__}: {problem}"
    return None


def sampling_settings(module: Any) -> GenerationConfig:
    """Plain sampling at temperature 1 from the whole vocabulary."""
    return GenerationConfig(
        max_new_tokens=STUDENT_LIMIT,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=module.config.eos_token_id,
        pad_token_id=module.config.pad_token_id,
        disable_compile=True,
    )


def useful_tokens(answers_BT: torch.Tensor, stop: int) -> int:
    """Tokens up to and including each answer's first stop token."""
    before_stop_BT = (answers_BT == stop).long().cumsum(-1).sub((answers_BT == stop).long()) == 0
    return int(before_stop_BT.sum())


def trl_worker(options: argparse.Namespace, num_prompts: int, stop_probability: float) -> Worker:
    """TRL's sampling of answers in its own interpreter, on the same prompts."""
    job = {
        "kind": "answers",
        "student": str(student_path()),
        "teacher": str(teacher_path()),
        "prompts": [problem.problem for problem in make_problems(num_prompts, PROMPT_SEED)],
        "batch": STUDENT_ROWS,
        "max_new_tokens": STUDENT_LIMIT,
        "learning_rate": 1e-6,
        "accumulation": 1,
        "cache": None,
        "stop_probability": stop_probability,
        "threads": options.threads,
        "clock": options.clock,
        "seed": 0,
    }
    return Worker([str(options.trl_python), str(Path(__file__).with_name("trl_worker.py"))], job)


# ------------------------------------------------------------------------------------------------------- scaling


def scaling_section(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """How the speed grows with the number of rows."""
    student, teacher = demo_pair(options.compile)
    shown = Table(title="Embedded pair, tokens per second by rows", title_justify="left")
    for heading in ("rows", "student", "lock-step at 0.01", "auto at 0.01", "/ lock-step", "/ student"):
        shown.add_column(heading, justify="right")
    records = []
    for rows in (1, 16, 128) if options.quick else (1, 4, 16, 64, 128):
        prompts, policy = demo_prompts(max(6, 2 * rows)), TrustRegion(kl_radius=0.01)
        contenders = {
            STUDENT: rollout_contender(
                PairedEngine(student, limits=Limits(max_rows=rows)), Student(), prompts, MAX_NEW_TOKENS
            )
        }
        for name, draft_length in ((LOCKSTEP, 1), ("auto", "auto")):
            engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=rows))
            contenders[name] = rollout_contender(engine, policy, prompts, MAX_NEW_TOKENS)
        results: Results = take_turns(contenders, options.rounds, title=f"{rows} rows", clock=options.clock)
        record = {
            "rows": rows,
            **{name: middle(results[name], "tokens_per_second") for name in results},
            "over_lockstep": ratio(results["auto"], results[LOCKSTEP], "tokens_per_second"),
            "over_student": ratio(results["auto"], results[STUDENT], "tokens_per_second"),
        }
        records.append({**record, "rounds": results})
        speeds = [f"{record[name]:.0f}" for name in (STUDENT, LOCKSTEP, "auto")]
        shown.add_row(str(rows), *speeds, f"{record['over_lockstep']:.2f}", f"{record['over_student']:.2f}")
    console.print(shown)
    return records


# ---------------------------------------------------------------------------------------------------- a real vocabulary


def vocabulary_section(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Where the policy is what costs: unrelated models whose logits are spread like real ones, 2 and 4 small layers."""
    models = []
    for number, (name, num_layers) in enumerate((("student", 2), ("teacher", 4))):
        shape = Shape(128, num_layers, 4, 256, num_key_value_heads=2, head_dim=32)
        module = random_module(shape, device="cpu", dtype=torch.float32, seed=number)
        torch.nn.init.constant_(module.model.norm.weight, 10.0)
        models.append(LanguageModel(module, name=name, compile=options.compile))
    rows, new_tokens = 4, 24 if options.quick else 48
    seconds = [single_token_seconds(model, rows, options.clock) for model in models]
    pair = Pair(models[0], models[1], 4, seconds[1] / seconds[0])
    shown = trb_table(f"{VOCABULARY} words, two small random models, {new_tokens} new tokens")
    prompts = [[1 + place, 2, 3, 4] for place in range(rows)]
    records = measure_trb(pair, prompts, rows, RADII[1:2], new_tokens, options, shown)
    console.print(shown)
    return records


# ----------------------------------------------------------------------------------------------------------- GPU


def gpu_section(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """The trust-region table at the size people train."""
    pair = random_pair(options.compile)
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    shape = (GPU_ROWS, GPU_PROMPT_TOKENS)
    prompts = torch.randint(0, VOCABULARY, shape, generator=generator).tolist()
    new_tokens = 128 if options.quick else GPU_NEW_TOKENS
    radii = RADII[1:2] if options.quick else RADII
    shown = trb_table(f"Qwen3-1.7B and 8B shapes, random bfloat16 weights, {new_tokens} new tokens")
    records = measure_trb(pair, prompts, GPU_ROWS, radii, new_tokens, options, shown)
    console.print(shown)
    return records


def random_pair(compiles: bool) -> Pair:
    """Two unrelated random models of the published shapes. They never stop, so every answer has the full length.

    Unrelated models are some nats apart at every prefix, more than any budget here, so the trust region binds
    everywhere and acceptance is near its lower end.
    """
    student, teacher = (
        LanguageModel(random_module(QWEN3[size], device="cuda", seed=number), name=name, compile=compiles)
        for number, (name, size) in enumerate((("student", "1.7B"), ("teacher", "8B")))
    )
    seconds = [single_token_seconds(model, GPU_ROWS, "wall", filled=512) for model in (student, teacher)]
    return Pair(student, teacher, QWEN3["8B"].num_hidden_layers, seconds[1] / seconds[0])


# ------------------------------------------------------------------------------------------------------- profile


def profile(options: argparse.Namespace, console: Console) -> None:
    """Print the 15 functions in which one rollout spends most of its time."""
    student, teacher = demo_pair(options.compile)
    prompts = demo_prompts(max(6, 2 * options.rows))
    draft_length: int | str = "auto" if options.profile == "trb" else 1
    policy: Policy = Student() if options.profile == "student" else TrustRegion(kl_radius=options.kl_radius)
    engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=options.rows))
    run = rollout_contender(engine, policy, prompts, MAX_NEW_TOKENS)
    run(1)
    plain = take_turns({"": run}, 1, title=options.profile, clock=options.clock, warmups=0)[""][0]
    recorder = cProfile.Profile(CLOCKS[options.clock])
    recorder.enable()
    run(0)
    recorder.disable()
    entries = pstats.Stats(recorder).stats  # type: ignore[attr-defined]
    watched = sum(own for _, _, own, _, _ in entries.values())
    console.print(describe(machine()))
    console.print(
        f"{options.profile}, {options.rows} rows: {plain['tokens']} tokens in {plain['seconds']:.2f} s "
        f"({watched:.2f} s under the profiler, which makes short calls look more expensive)"
    )
    shown = Table()
    for heading in ("share", "seconds", "calls", "function"):
        shown.add_column(heading, justify="left" if heading == "function" else "right")
    dearest = sorted(entries.items(), key=lambda entry: -entry[1][2])[:15]
    for (file, line, name), (_, calls, own, _, _) in dearest:
        where = name if file == "~" else f"{name}  ({Path(file).name}:{line})"
        shown.add_row(f"{own / watched:.1%}", f"{own:.3f}", str(calls), where)
    console.print(shown)


if __name__ == "__main__":
    main()
