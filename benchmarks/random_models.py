"""Models of published shapes with random weights, and a training step of a pair of them; nothing is downloaded.

Random models never stop, so every answer has the full length, and two of them are some nats apart at every prefix, more
than any budget of a trust region here: it binds everywhere, and acceptance is near its lower end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from measuring import Measurement
from tutelage.config import RunConfig, build_phases, load_config
from tutelage.config.step_memory import StepMemory, free_bytes
from tutelage.models import LanguageModel, align
from tutelage.rollout import Limits, PairedEngine
from tutelage.runtime import LocalRuntime
from tutelage.training import BatchSource, Learning, PromptOrder, Stopwatch, collect
from tutelage.training.peak_memory import PeakMemory
from tutelage.types import Prompt

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "trb.toml"
VOCABULARY = 151_936


@dataclass(frozen=True)
class Shape:
    """What a Qwen3 configuration says of a model's size."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = True
    num_key_value_heads: int = 8
    head_dim: int = 128


# As in the models' own configurations.
QWEN3 = {
    "0.6B": Shape(1024, 28, 16, 3072),
    "1.7B": Shape(2048, 28, 16, 6144),
    "4B": Shape(2560, 36, 32, 9728),
    "8B": Shape(4096, 36, 32, 12288, tie_word_embeddings=False),
}
TINY = Shape(64, 2, 4, 128, num_key_value_heads=2, head_dim=16)
TINY_TEACHER = replace(TINY, num_hidden_layers=3)


def random_module(
    shape: Shape, *, device: str, dtype: torch.dtype = torch.bfloat16, vocabulary: int = VOCABULARY, seed: int = 0
) -> Any:
    """A causal language model that never stops, in evaluation mode and without gradients."""
    config = Qwen3Config(
        **vars(shape),
        vocab_size=vocabulary,
        max_position_embeddings=40_960,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    module.generation_config.eos_token_id = None
    return module


def without_weights(model: LanguageModel) -> LanguageModel:
    """The same model on no device, as the forecast of memory looks at it."""
    dtype = model.module.dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            module = type(model.module)(model.module.config)
    finally:
        torch.set_default_dtype(before)
    return LanguageModel(module, name=model.name, autocast=model.autocast)


def random_prompts(number: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Prompts of any tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[list[int]] = torch.randint(0, vocabulary, (number, length), generator=generator).tolist()
    return tokens


def settings(overrides: Sequence[str]) -> RunConfig:
    """`recipes/trb.toml` with some keys set; its models and prompts are not looked at."""
    return load_config(RECIPE, ["data=prompts.jsonl", *overrides])


class RandomStep:
    """One training step after another, on prompts that stay the same.

    Args:
      student, teacher: the student's weights learn.
      prompts: all of one step; each gets one answer.
      overrides: of `recipes/trb.toml`.
    """

    def __init__(
        self, student: LanguageModel, teacher: LanguageModel, prompts: Sequence[Sequence[int]], overrides: Sequence[str]
    ) -> None:
        device = str(student.device)
        sizes = (f"rollout.prompts_per_step={len(prompts)}", "rollout.samples_per_prompt=1", f"runtime.device={device}")
        config = settings([*sizes, *overrides])
        rollout, number, self.runtime = config.rollout, len(prompts), LocalRuntime(device)
        student.checkpoints_gradient = config.runtime.gradient_checkpointing
        student.enable_grad()
        limits = Limits(rollout.max_rows, None, rollout.score_tokens)
        engine = PairedEngine(student, teacher, draft_length=rollout.draft_length, limits=limits)
        asked = [Prompt(list(prompt)) for prompt in prompts]
        self.source = BatchSource(
            engine.models,
            engine,
            engine,
            asked,
            [None] * number,
            PromptOrder(number, number),
            rollout,
            None,
            self.runtime,
            0,
        )
        phases = build_phases(config)
        self.recipe = phases[0].recipe_at(0)
        self.memory = StepMemory(
            config,
            {"student": without_weights(student), "teacher": without_weights(teacher)},
            phases,
            asked,
            align(student, teacher),
            device,
        )
        self.micro_batch_tokens = config.runtime.micro_batch_tokens or self._fitting(student, teacher)
        self.learning = Learning(phases, micro_batch_tokens=self.micro_batch_tokens, loss_form=config.runtime.loss)
        self.update = self.learning.update_for(self.source)

    def _fitting(self, *models: LanguageModel) -> int:
        """What a run would choose, whose models are not there yet when it does."""
        weights = [weight for model in models for weight in model.module.parameters()]
        there = sum(weight.nbytes for weight in weights)
        return self.memory.fitting_micro_batch(free_bytes(self.runtime.device) + there)

    def __call__(self, step: int) -> Measurement:
        """Take one step: seconds of its parts, tokens of its answers, and a GPU's peak memory."""
        watch, peak, started = Stopwatch(), PeakMemory(self.runtime.device), time.perf_counter()
        gather = partial(collect, replace(self.source, seed=step), 0, self.recipe, watch)
        pending = self.update.prepare(0, self.recipe, gather)
        self.update.commit(pending)
        watch.lap("update")
        return {
            "seconds": time.perf_counter() - started,
            "tokens": pending.batch.num_tokens,
            **watch.seconds,
            **peak.metrics(),
        }
