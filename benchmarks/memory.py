"""What fits where? The forecast of `tutelage doctor` for Qwen3 pairs, from their shapes; no weights and no GPU needed.

    python benchmarks/memory.py

Each line is `recipes/trb.toml` with the settings shown, prompts of 512 tokens, and answers of at most 4,096. GB are
10^9 bytes per GPU at the height of a step; a forecast, so leave some room.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config

from tutelage.config import ModelConfig, build_phases, load_config
from tutelage.config.step_memory import StepMemory
from tutelage.models import ALL_WEIGHTS, DTYPES, LanguageModel, ModelSource, align, meta_model_of
from tutelage.types import Prompt

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "trb.toml"
PROMPT_TOKENS, ANSWER_TOKENS = 512, 4096
# hidden size, layers, heads, inner size, whether the head is the embedding; as in the models' own configurations.
SHAPES = {
    "Qwen3-0.6B": (1024, 28, 16, 3072, True),
    "Qwen3-1.7B": (2048, 28, 16, 6144, True),
    "Qwen3-4B": (2560, 36, 32, 9728, True),
    "Qwen3-8B": (4096, 36, 32, 12288, False),
}
SMALL, LARGE = ("Qwen3-0.6B", "Qwen3-4B"), ("Qwen3-1.7B", "Qwen3-8B")
LEAN = ("runtime.autocast=bfloat16", "runtime.gradient_checkpointing=true", "runtime.micro_batch_tokens=8192")
FSDP2 = "runtime.strategy=fsdp2"
LORA = ("student.adapter.method=lora", "student.dtype=bfloat16")

SERVED = ("teacher.server=http://teacher:8000", "policy=student", "divergence.support=teacher_top_k")


@dataclass(frozen=True)
class Setup:
    """A line of the table."""

    hardware: str
    pair: tuple[str, str]
    overrides: tuple[str, ...]
    processes: int = 1


SETUPS = (
    Setup("one GPU of 24 GB", SMALL, (*LEAN, "rollout.max_rows=4")),
    Setup("one GPU of 24 GB", SMALL, (*LEAN, *LORA, "rollout.max_rows=8")),
    Setup("one GPU of 24 GB", LARGE, (*LEAN, *LORA, *SERVED, "rollout.max_rows=16")),
    Setup("one GPU of 80 GB", SMALL, (*LEAN, "rollout.max_rows=40")),
    Setup("one GPU of 80 GB", LARGE, (*LEAN, "rollout.max_rows=24")),
    Setup("8 GPUs of 80 GB", LARGE, (*LEAN, "rollout.max_rows=24"), 8),
    Setup("8 GPUs of 80 GB", LARGE, (*LEAN, FSDP2, "rollout.max_rows=32"), 8),
    Setup("two nodes, 16 GPUs", LARGE, (*LEAN, "rollout.max_rows=16"), 16),
    Setup("two nodes, 16 GPUs", LARGE, (*LEAN, FSDP2, "runtime.shard_teacher=true", "rollout.max_rows=16"), 16),
)


def main() -> None:
    """Print the table."""
    table = Table("set-up", "pair", "settings", "rollout", "scoring", "update", title="GB per GPU, forecast")
    for setup in SETUPS:
        phases = per_process(setup)
        settings = [override.partition(".")[2] or override for override in setup.overrides]
        cells = [f"{sum(parts.values()) / 1e9:.1f}" for parts in phases.values()]
        table.add_row(setup.hardware, " <- ".join(setup.pair), ", ".join(settings), *cells)
    Console(highlight=False, width=160).print(table)


def per_process(setup: Setup) -> dict[str, dict[str, int]]:
    """Part of a step -> what takes memory then -> bytes in each process."""
    sizes = (f"rollout.max_new_tokens={ANSWER_TOKENS}", "data=prompts.jsonl", "runtime.device=cpu")
    config = load_config(RECIPE, [*sizes, *setup.overrides])
    with TemporaryDirectory() as folder:
        student = shape(setup.pair[0], config.student, Path(folder))
        student.autocast = DTYPES[config.runtime.autocast or config.student.dtype]
        teacher = shape(setup.pair[1], config.teacher, Path(folder))
    memory = StepMemory(
        config,
        {"student": student, "teacher": teacher},
        build_phases(config),
        [Prompt([0] * PROMPT_TOKENS)],
        align(student, teacher),
        "cpu",
        num_processes=setup.processes,
    )
    assert config.runtime.micro_batch_tokens is not None
    return memory.forecast(config.runtime.micro_batch_tokens)


def shape(name: str, model: ModelConfig, folder: Path) -> LanguageModel:
    """A model without numbers, made of its configuration."""
    hidden, layers, heads, inner, tied = SHAPES[name]
    Qwen3Config(
        vocab_size=151_936, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, intermediate_size=inner, tie_word_embeddings=tied, eos_token_id=151_645,
    ).save_pretrained(folder / name)  # fmt: skip
    trainable = getattr(model, "what_learns", ALL_WEIGHTS)
    return meta_model_of(ModelSource(str(folder / name), model.dtype), None, trainable=trainable, needs_weights=False)


if __name__ == "__main__":
    main()
