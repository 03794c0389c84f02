"""Does F-GRPO keep rare right answers, where GRPO loses them?  A world in which their probability is known exactly.

    python benchmarks/rare_solutions.py OUTPUT
    python benchmarks/rare_solutions.py OUTPUT --seeds 100 --gammas 0 --set learning_rate=1e-3    # to choose settings

F-GRPO (arXiv 2602.06717) says: a group of N answers with some right and some wrong gives a gradient, but seldom holds
a rare right answer, so probability moves from rare right answers to common ones; pass@1 rises and pass@k at large k
falls. Groups that are mostly right do most of the harm: their advantages are multiplied by (1 - share right)^gamma.

The world: a + b for two digits. There are two styles, told apart by an answer's first token:

    direct   D u E      the sum as one digit: right only where nothing is carried (a + b < 10)
    column   C t u E    tens, then ones: right for every problem, but two digits can go wrong

The student, a Qwen3 model of 75,000 weights, has been taught to write direct in 86% of its answers and column in 10%,
and errs in both, more often in column. So a problem without a carry has a common right answer and a rare one, and a
problem with a carry only the rare one; one prompt in ten has a carry. Every problem has one right answer per style,
whose probabilities are read off the model, so these are exact, not sampled:

    m            probability of a right answer; pass@k = mean over problems of 1 - (1 - m)^k, for any k
    rare mass    probability of the right answer in column, where direct would be right as well
    kept         1 - Σ max(0, m_0 - m) / Σ m_0 over the right answers of both styles, m_0 before RL (the paper's M)

Everything that learns is the library's: rollouts of `PairedEngine`, `collect`, `ClippedSurrogate` with `Focal` around
`GroupReward` (gamma = 0 is GRPO), AdamW of `GradientUpdate`. An enumerable world is chosen over sampled word problems,
because pass@256 of rare answers needs thousands of samples per problem and seed there. What it cannot show is length,
styles that share most of their tokens, and new problems: numbers are about the problems that RL draws from, as the
paper's toy and its lost probability are. (With held-out sums the model, which knows sums by heart, forgets them.)

gamma also shrinks gradients; AdamW undoes a common factor, but a slower run also keeps more. So numbers are given
twice: after the last step, and where each run first reaches the pass@1 that all runs of its seed reach ("at equal
pass@1"). All seeds start from the same student.

World and SETTINGS were chosen by GRPO alone, on seeds 100 and 101: pass@1 must rise a good deal, and stay. In a first
world column was as easy as direct; at a rate of 6e-4 it then became the common style in a run, which says nothing about
rare answers.

Every run leaves OUTPUT/NAME.json, a finished one is not repeated, so the command may be stopped and given again. The
table is also in OUTPUT/results.md, its numbers in OUTPUT/results.json. One thread: the student takes a minute of the
processor, made once, and a run 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from measuring import run_on_threads
from tutelage.advantages import Focal, GroupReward
from tutelage.evaluation import t_interval
from tutelage.losses.tokens.clipped_surrogate import ClippedSurrogate
from tutelage.policies import Student
from tutelage.rollout import PairedEngine
from tutelage.runtime import LocalRuntime
from tutelage.targets import Teacher
from tutelage.training import (
    BatchSource,
    Learning,
    OptimizerSettings,
    Phase,
    PromptOrder,
    Recipe,
    RolloutSettings,
    Stopwatch,
    collect,
)
from tutelage.types import Prompt, Rollout

BASE = 10
DIRECT, COLUMN, END = BASE, BASE + 1, BASE + 2
VOCABULARY = BASE + 3
MAX_NEW_TOKENS = 4

# What the student is taught before RL: shares of the styles, and of right digits in each.
STYLES = {DIRECT: 0.86, COLUMN: 0.10}
RIGHT_DIRECT, RIGHT_TENS, RIGHT_ONES = 0.6, 0.6, 0.5
TEACHING_STEPS, TEACHING_RATE, WORLD_SEED = 1000, 5e-3, 5

GAMMAS = (0.0, 0.5, 1.0)
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Settings:
    """Of every run.

    Fields:
      steps, learning_rate: of AdamW, with no weight decay.
      prompts_per_step, samples_per_prompt: P and N.
      carry_share: of the prompts.
      steps_per_look: between two readings of the exact numbers.
    """

    steps: int = 300
    learning_rate: float = 3e-4
    prompts_per_step: int = 16
    samples_per_prompt: int = 8
    carry_share: float = 0.1
    steps_per_look: int = 10


SETTINGS = Settings()
Problem = tuple[int, int]


def main() -> None:
    """Make the student, run what is not there yet, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--gammas", type=float, nargs="+", default=GAMMAS)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="another value of SETTINGS")
    options = parser.parse_args()
    run_on_threads(1)
    given = dict(item.split("=") for item in options.set)
    settings = replace(SETTINGS, **{name: type(getattr(SETTINGS, name))(value) for name, value in given.items()})
    options.output.mkdir(parents=True, exist_ok=True)
    taught = taught_weights(options.output / "student.pt")
    runs: dict[tuple[float, int], dict[str, Any]] = {}
    for seed in options.seeds:
        for gamma in options.gammas:
            path = options.output / f"gamma-{gamma:g}-seed-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(train(taught, gamma, seed, settings)) + "\n", encoding="utf-8")
                print(f"written {path}", flush=True)
            runs[gamma, seed] = json.loads(path.read_text(encoding="utf-8"))
            if runs[gamma, seed]["settings"] != asdict(settings):
                parser.error(f"{path} has other settings: {runs[gamma, seed]['settings']}; choose another OUTPUT")
    found = {when: table_of(runs, options.gammas, options.seeds, when) for when in ("last", "equal")}
    text = "\n\n".join(f"{title}\n\n{markdown(found[when])}" for when, title in TITLES.items())
    (options.output / "results.md").write_text(text + "\n", encoding="utf-8")
    (options.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)


# The world.


def problems(*, carries: bool) -> list[Problem]:
    """All pairs of digits of one kind."""
    return [(a, b) for a in range(BASE) for b in range(BASE) if (a + b >= BASE) == carries]


def direct_answer(problem: Problem) -> list[int]:
    """The answer in one digit; right unless something is carried."""
    return [DIRECT, sum(problem) % BASE, END]


def column_answer(problem: Problem) -> list[int]:
    """The answer in two digits, always right."""
    return [COLUMN, sum(problem) // BASE, sum(problem) % BASE, END]


def is_right(problem: Problem, answer: Sequence[int]) -> bool:
    """Whether an answer gives the sum, in either style."""
    carries = sum(problem) >= BASE
    return list(answer) == column_answer(problem) or (not carries and list(answer) == direct_answer(problem))


def new_model() -> Qwen3ForCausalLM:
    """An untrained student."""
    torch.manual_seed(WORLD_SEED)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=64,
            eos_token_id=END,
            bos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=True,
        )
    )
    model.generation_config.eos_token_id = END
    return model.float()


def taught_weights(path: Path) -> dict[str, Tensor]:
    """The student before RL; taught once, the whole law of the next token after every kind of prefix."""
    if not path.exists():
        model, generator = new_model(), torch.Generator().manual_seed(WORLD_SEED)
        optimizer = torch.optim.AdamW(model.parameters(), TEACHING_RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TEACHING_STEPS)
        pairs = [*problems(carries=False), *problems(carries=True)]
        laws_RTV = torch.stack([law_T for pair in pairs for law_T in taught_laws(pair)])
        for step in range(TEACHING_STEPS):
            digits = torch.randint(BASE, (len(pairs), 2), generator=generator).tolist()
            prefixes = [[*pair, *prefix] for pair, (t, u) in zip(pairs, digits, strict=True) for prefix in taught(t, u)]
            logits = model(input_ids=torch.tensor(prefixes), use_cache=False).logits[:, 1:]
            loss = -(laws_RTV * logits.log_softmax(-1)).sum(-1).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 200 == 199:
                print(f"teaching, step {step + 1}: {float(loss.detach()):.4f} nats", flush=True)
        torch.save(model.state_dict(), path)
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights


def taught(t: int, u: int) -> list[list[int]]:
    """The beginnings of answers that the student is taught after: each style's, with any digits, and a bare digit."""
    return [[DIRECT, u, END], [COLUMN, t, u], [u, END, END]]


def taught_laws(problem: Problem) -> Tensor:
    """The law of the next token, [beginning, place, word], after 0 to 3 tokens of each; 0 where nothing follows."""

    def digit(right: int, share: float) -> Tensor:
        law_V = torch.zeros(VOCABULARY)
        law_V[:BASE] = (1 - share) / (BASE - 1)
        law_V[right] = share
        return law_V

    style, end, nothing = torch.zeros(VOCABULARY), torch.zeros(VOCABULARY), torch.zeros(VOCABULARY)
    style[:BASE] = (1 - sum(STYLES.values())) / BASE
    for word, share in STYLES.items():
        style[word] = share
    end[END] = 1
    tens, ones = divmod(sum(problem), BASE)
    return torch.stack(
        [
            torch.stack([style, digit(ones, RIGHT_DIRECT), end, nothing]),
            torch.stack([style, digit(tens, RIGHT_TENS), digit(ones, RIGHT_ONES), end]),
            torch.stack([style, end, nothing, nothing]),
        ]
    )


@torch.no_grad()
def log_probability(model: Any, pairs: Sequence[Problem], answers: Sequence[Sequence[int]]) -> Tensor:
    """log p of one answer to each problem, [problems], in float64."""
    rows = [[*pair, *answer] for pair, answer in zip(pairs, answers, strict=True)]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [END] * (length - len(row)) for row in rows])
    logprobs = model(input_ids=tokens[:, :-1], use_cache=False).logits.double().log_softmax(-1)
    taken = logprobs.gather(2, tokens[:, 1:, None])[..., 0]
    places = torch.arange(length - 1)
    ends = torch.tensor([len(row) - 1 for row in rows])[:, None]
    return taken.masked_fill((places < 1) | (places >= ends), 0).sum(1)


def right_masses(model: Any, pairs: Sequence[Problem]) -> dict[str, list[float]]:
    """Probability of the right answer in each style, problem by problem; 0 for direct where something is carried."""
    plain = torch.tensor([float(sum(pair) < BASE) for pair in pairs]).double()
    direct = log_probability(model, pairs, [direct_answer(pair) for pair in pairs]).exp() * plain
    column = log_probability(model, pairs, [column_answer(pair) for pair in pairs]).exp()
    return {"direct": direct.tolist(), "column": column.tolist()}


# A run.


def train(taught: dict[str, Tensor], gamma: float, seed: int, settings: Settings) -> dict[str, Any]:
    """One run: exact masses of all problems every so many steps."""
    started, model = time.perf_counter(), new_model()
    model.load_state_dict(taught)
    model.eval()
    kinds = {"plain": problems(carries=False), "carrying": problems(carries=True)}
    asked = drawn_prompts(kinds["plain"], kinds["carrying"], seed, settings)
    rollout = RolloutSettings(
        prompts_per_step=settings.prompts_per_step,
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        max_rows=settings.prompts_per_step * settings.samples_per_prompt,
    )
    engine = PairedEngine(model)

    def verify(rollouts: Sequence[Rollout], answers: Sequence[str]) -> list[bool]:
        return [is_right((made.prompt_tokens[0], made.prompt_tokens[1]), made.response_tokens) for made in rollouts]

    source = BatchSource(
        models=engine.models,
        engine=engine,
        scorer=engine,
        prompts=[Prompt(list(pair)) for pair in asked],
        answers=[str(sum(pair)) for pair in asked],
        order=PromptOrder(len(asked), settings.prompts_per_step),
        rollout=rollout,
        verify=verify,
        runtime=LocalRuntime("cpu"),
        seed=seed,
    )
    advantage = Focal(GroupReward(reward="correct"), gamma, reward="correct")
    loss = ClippedSurrogate(advantage=advantage, normaliser="sequence_mean")
    recipe = Recipe(Student(), Teacher(), (loss,))
    optimizer = OptimizerSettings(learning_rate=settings.learning_rate, warmup_steps=0, weight_decay=0.0)
    update = Learning([Phase(recipe, optimizer)]).update_for(source)
    looks, rewards = [], []
    for step in range(settings.steps + 1):
        if step % settings.steps_per_look == 0:
            looks.append({"step": step, **{kind: right_masses(model, pairs) for kind, pairs in kinds.items()}})
        if step < settings.steps:
            pending = update.prepare(step, recipe, partial(collect, source, step, recipe, Stopwatch()))
            update.commit(pending)
            rewards.append(float(pending.batch.rewards["correct"].mean()))
    seconds = time.perf_counter() - started
    return {"gamma": gamma, "seed": seed, "settings": asdict(settings), "seconds": seconds, "reward": rewards,
            "looks": looks}  # fmt: skip


def drawn_prompts(
    plain: Sequence[Problem], carrying: Sequence[Problem], seed: int, settings: Settings
) -> list[Problem]:
    """The problems of all steps, drawn with replacement; the same ones for every gamma."""
    generator = torch.Generator().manual_seed(seed)
    number = settings.steps * settings.prompts_per_step
    kinds = (torch.rand(number, generator=generator) < settings.carry_share).tolist()
    draws = torch.rand(number, generator=generator).tolist()
    pools = [carrying if carries else plain for carries in kinds]
    return [pool[int(u * len(pool))] for pool, u in zip(pools, draws, strict=True)]


# What came out.

TITLES = {"last": "After the last step", "equal": "At equal pass@1"}
MEASURES = {
    "pass@1 %": ("all", 1),
    "pass@64 %": ("all", 64),
    "pass@256 %": ("all", 256),
    "no carry: pass@1 %": ("plain", 1),
    "carry: pass@1 %": ("carrying", 1),
    "carry: pass@64 %": ("carrying", 64),
}
RARE, KEPT, STEP = "rare mass %", "kept %", "step reached"


def numbers_of(look: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """The measures of one look at a run; "all" counts both kinds of problems alike."""
    found: dict[str, float] = {}
    masses = {
        kind: [d + c for d, c in zip(look[kind]["direct"], look[kind]["column"], strict=True)]
        for kind in ("plain", "carrying")
    }
    for title, (kind, k) in MEASURES.items():
        kinds = ("plain", "carrying") if kind == "all" else (kind,)
        found[title] = 100 * fmean(fmean(1 - (1 - m) ** k for m in masses[name]) for name in kinds)
    found[RARE] = 100 * fmean(look["plain"]["column"])
    answers = [(kind, style) for kind in masses for style in ("direct", "column")]
    before = [m for kind, style in answers for m in first[kind][style]]
    now = [m for kind, style in answers for m in look[kind][style]]
    found[KEPT] = 100 * (1 - sum(max(0.0, b - n) for b, n in zip(before, now, strict=True)) / sum(before))
    found[STEP] = look["step"]
    return found


def looks_of(run: dict[str, Any]) -> list[dict[str, float]]:
    return [numbers_of(look, run["looks"][0]) for look in run["looks"]]


def table_of(
    runs: dict[tuple[float, int], dict[str, Any]], gammas: Sequence[float], seeds: Sequence[int], when: str
) -> dict[str, Any]:
    """Measure -> method -> mean, deviation, and the paired difference to the first gamma with its 95% interval."""
    values: dict[tuple[float, int], dict[str, float]] = {}
    for seed in seeds:
        looks = {gamma: looks_of(runs[gamma, seed]) for gamma in gammas}
        level = min(max(look["pass@1 %"] for look in found) for found in looks.values())
        for gamma, found in looks.items():
            reached = next(look for look in found if look["pass@1 %"] >= level)
            values[gamma, seed] = found[-1] if when == "last" else reached
    first = numbers_of(runs[gammas[0], seeds[0]]["looks"][0], runs[gammas[0], seeds[0]]["looks"][0])
    table: dict[str, Any] = {"before RL": {name: {"mean": value} for name, value in first.items()}}
    for gamma in gammas:
        row = table["GRPO" if gamma == 0 else f"F-GRPO, gamma {gamma:g}"] = {}
        for name in first:
            of_seeds = [values[gamma, seed][name] for seed in seeds]
            apart = [values[gamma, seed][name] - values[gammas[0], seed][name] for seed in seeds]
            row[name] = {"mean": fmean(of_seeds), "deviation": stdev(of_seeds) if len(seeds) > 1 else None}
            if gamma != gammas[0]:
                row[name] |= {"difference": fmean(apart), "interval": t_interval(apart)}
    return table


def markdown(table: dict[str, Any]) -> str:
    """The table, a line per method: mean ± deviation, below it the paired difference with its interval."""
    names = list(table["before RL"])

    def cell(found: dict[str, Any]) -> str:
        text = f"{found['mean']:.1f}" + (f" ± {found['deviation']:.1f}" if found.get("deviation") is not None else "")
        if found.get("interval") is not None:
            low, high = found["interval"]
            text += f"<br>{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        return text

    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {method} | {' | '.join(cell(row[name]) for name in names)} |" for method, row in table.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
