"""Where do the packaged teacher and student come from? This script makes both from nothing, on one CPU core each.

    python -m tutelage.demo.make_pair OUTPUT_DIR [--only teacher|student|drifter]

It trains a small tokenizer and two Qwen3 models on the problems of `world`: the teacher on clean solutions, the student
on a mixture with slips, guesses and stories that drift off, so that it knows the way but loses it when sampled. Seeds
and the thread count are fixed. It uses transformers and torch directly and, errors aside, no other part of the library,
so that the pair can be remade while the rest is under change.

The packaged pair, on 200 fresh problems, greedily and with 4 samples each at temperature 1 (at most 90 new tokens):

    model    parameters  greedy  sampled  samples that end  tokens per sample  CPU time
    teacher   1,639,168   0.985    0.955             0.999               61.5    38 min
    student     327,936   0.670    0.070             0.985               44.5    13 min
"""

import argparse
import dataclasses
import itertools
import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tutelage.demo.world import (
    NOISY,
    Shares,
    Story,
    WordProblem,
    clean_solution,
    make_problems,
    make_stories,
    noisy_solution,
)
from tutelage.errors import OutputExistsError

TOKENIZER_SEED, TRAINING_SEED, HELD_OUT_SEED, MODEL_SEED = 11, 12, 13, 14
VOCABULARY_SIZE = 335
PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
MAX_NEW_TOKENS = 90
BATCH_SIZE = 64
WARMUP_STEPS = 40
# Batches of one length are cut from groups of this many, which saves most of the padding.
BATCHES_PER_GROUP = 20
IGNORED = -100

# A system message has no token of its own: it opens the next user message, on a line of its own.
CHAT_TEMPLATE = """\
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.system = state.system + message['content'] + '\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- '<|user|>' + state.system + message['content'] -}}
{%- set state.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant|>' + message['content'] + '<|end|>' -}}
{%- else -%}
{{- raise_exception('Roles are system, user and assistant; got ' + message['role'] + '.') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model: its shape, and how long it trains on which solutions; `shares` is None for clean ones only.

    The learning rate rises and falls once per phase, and AdamW starts anew.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    feedforward_size: int
    steps_of_phases: tuple[int, ...]
    shares: Shares | None
    peak_learning_rate: float = 2e-3


RECIPES = {
    "teacher": Recipe(192, 4, 6, 2, 512, steps_of_phases=(700, 300), shares=None),
    "student": Recipe(96, 3, 3, 1, 256, steps_of_phases=(950,), shares=NOISY),
    # Not packaged: a weaker student that loses its way more often, for studies in which early answers matter more.
    "drifter": Recipe(96, 3, 3, 1, 256, steps_of_phases=(950,), shares=Shares(clean=0.15, careless=0.2, guess=0.1)),
}
PAIR = ("teacher", "student")


@dataclasses.dataclass(frozen=True)
class Score:
    """How a model does on fresh problems."""

    accuracy: float
    ended_share: float
    mean_tokens: float


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer in which every digit is a token, so that sums can be learnt digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    problems = make_problems(4000, TOKENIZER_SEED)
    tokenizer.train_from_iterator((f"{problem.problem}\n{problem.solution}" for problem in problems), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return an untrained Qwen3 model of the recipe's shape that knows the tokenizer's special tokens."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=32,
        intermediate_size=recipe.feedforward_size,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(MODEL_SEED)
    model = Qwen3ForCausalLM(config).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def render_prompt(tokenizer: PreTrainedTokenizerFast, problem: str) -> str:
    """Return the text up to which the assistant has not yet spoken."""
    messages = [{"role": "user", "content": problem}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def training_batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a pair (tokens, labels) for every step, every problem once; labels cover the solution and its end token."""
    rng = random.Random(TRAINING_SEED)
    stories = make_stories(sum(recipe.steps_of_phases) * BATCH_SIZE, TRAINING_SEED)
    group_size = BATCH_SIZE * BATCHES_PER_GROUP
    for first in range(0, len(stories), group_size):
        rows = [_training_row(story, recipe, tokenizer, rng) for story in stories[first : first + group_size]]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        rng.shuffle(batches)
        for batch in batches:
            length = max(len(prompt) + len(solution) for prompt, solution in batch)
            tokens = torch.full((len(batch), length), tokenizer.pad_token_id)
            labels = torch.full((len(batch), length), IGNORED)
            for index, (prompt, solution) in enumerate(batch):
                end = len(prompt) + len(solution)
                tokens[index, :end] = torch.tensor(prompt + solution)
                labels[index, len(prompt) : end] = torch.tensor(solution)
            yield tokens, labels


def _training_row(
    story: Story, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> tuple[list[int], list[int]]:
    solution = clean_solution(story) if recipe.shares is None else noisy_solution(story, rng, recipe.shares)
    prompt_ids: list[int] = tokenizer.encode(render_prompt(tokenizer, story.problem), add_special_tokens=False)
    solution_ids: list[int] = tokenizer.encode(solution + END, add_special_tokens=False)
    return prompt_ids, solution_ids


def train(recipe: Recipe, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train phase by phase on one stream of batches."""
    batches = training_batches(recipe, tokenizer)
    for num_steps in recipe.steps_of_phases:
        train_phase(recipe, model, tokenizer, itertools.islice(batches, num_steps), num_steps)


def train_phase(
    recipe: Recipe,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    num_steps: int,
) -> None:
    """Train with AdamW under a warmed-up cosine, printing the loss and the greedy accuracy along the way."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_learning_rate, betas=(0.9, 0.95), weight_decay=0.1)

    def schedule(step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (num_steps - WARMUP_STEPS)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    held_out = make_problems(100, HELD_OUT_SEED + 1)
    started = time.monotonic()
    for step, (tokens, labels) in enumerate(batches, start=1):
        model.train()
        # Rows are padded on the right, so under causal attention no token with a label ever sees padding.
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            greedy = evaluate(model, tokenizer, held_out, num_samples=1, temperature=0.0)
            seconds = time.monotonic() - started
            print(f"step {step:5d}  {seconds:6.0f} s  loss {loss.item():.3f}  greedy {greedy.accuracy:.2f}", flush=True)


@torch.no_grad()
def evaluate(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[WordProblem],
    *,
    num_samples: int,
    temperature: float,
) -> Score:
    """Score solutions to fresh problems: greedy at temperature 0, plain sampling (no top-k, no top-p) above it."""
    model.eval()
    generator: Any = model  # the annotations of `generate` refuse the very classes that inherit it
    torch.manual_seed(HELD_OUT_SEED)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    num_right = num_ended = num_tokens = 0
    for start in range(0, len(problems), 100):
        batch = problems[start : start + 100]
        prompts = [render_prompt(tokenizer, problem.problem) for problem in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        outputs = generator.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            num_return_sequences=num_samples,
            **sampling,
        )
        solutions = outputs[:, inputs["input_ids"].shape[1] :]
        num_ended += int((solutions == tokenizer.eos_token_id).any(dim=1).sum())
        num_tokens += int((solutions != tokenizer.pad_token_id).sum())
        for row, text in enumerate(tokenizer.batch_decode(solutions, skip_special_tokens=True)):
            boxed = re.findall(r"\\boxed\{(\d+)\}", text)
            num_right += bool(boxed) and boxed[-1] == batch[row // num_samples].answer
    num_rows = len(problems) * num_samples
    return Score(num_right / num_rows, num_ended / num_rows, num_tokens / num_rows)


def make_pair(output_dir: Path, names: Sequence[str]) -> None:
    """Make the named models in `output_dir`, each in a folder with its tokenizer, and print a table of scores."""
    for name in names:
        folder = output_dir / name
        if folder.exists() and any(folder.iterdir()):
            raise OutputExistsError(f"{folder} is not empty; models are written to new folders. Choose another one.")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer()
    held_out = make_problems(200, HELD_OUT_SEED)
    table = [f"{'model':8} {'parameters':>10} {'greedy':>7} {'sampled':>8} {'ended':>6} {'tokens':>7}"]
    for name in names:
        model = make_model(RECIPES[name], tokenizer)
        # Before training, because the tokenizer's file would also hold the padding of its latest call.
        tokenizer.save_pretrained(output_dir / name)
        train(RECIPES[name], model, tokenizer)
        model.save_pretrained(output_dir / name)
        greedy = evaluate(model, tokenizer, held_out, num_samples=1, temperature=0.0)
        sampled = evaluate(model, tokenizer, held_out, num_samples=4, temperature=1.0)
        table.append(
            f"{name:8} {model.num_parameters():10,} {greedy.accuracy:7.3f} {sampled.accuracy:8.3f} "
            f"{sampled.ended_share:6.3f} {sampled.mean_tokens:7.1f}"
        )
    print("\n".join(table))


def main() -> None:
    """Read the command line and make the pair."""
    parser = argparse.ArgumentParser(prog="python -m tutelage.demo.make_pair", description="Remake the demo's models.")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--only", choices=sorted(RECIPES), help="make one model; without it the packaged two")
    arguments = parser.parse_args()
    make_pair(arguments.output_dir, [arguments.only] if arguments.only else PAIR)


if __name__ == "__main__":
    main()
