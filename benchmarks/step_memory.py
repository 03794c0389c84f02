"""How near is the forecast of a step's memory to what its update takes?

    python benchmarks/step_memory.py [--tokens 2048] [--json FILE]

Random Qwen3 models of width 512 with 8 layers and 32,000 words on a CPU, one update each in a process of its own, with
AdamW's moments there. Measured is the peak of its resident memory, beyond what it held before there
were models; forecast is what `config.step_memory` says of it, by which `tutelage doctor` speaks and a GPU's micro-batch
is chosen. Several settings of precision, checkpointing and form of the loss. `gpu.py` makes the same comparison
with what torch counts on a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from loss_forms import peak, reset_peak, status_bytes
from measuring import describe, machine, run_on_threads, wide_console, write_json
from random_models import RandomStep, Shape, random_module, random_prompts
from tutelage.models import LanguageModel
from tutelage.training import Stopwatch, collect

GIB = 2**30
SHAPE, WORDS = Shape(512, 8, 8, 1536, num_key_value_heads=4, head_dim=64), 32_000
PROMPT_TOKENS, ANSWER_TOKENS = 64, 64
SETTINGS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "autocast": ("runtime.autocast=bfloat16",),
    "bfloat16": ("student.dtype=bfloat16",),
    "gradient checkpointing": ("runtime.gradient_checkpointing=true",),
    "whole vocabulary": ("divergence.support=full",),
    "whole vocabulary, recomputed": ("divergence.support=full", "runtime.loss=recomputed"),
    "whole vocabulary, chunked": ("divergence.support=full", "runtime.loss=chunked"),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--only", choices=tuple(SETTINGS), help="one of the settings, measured in this process")
    options = parser.parse_args()
    run_on_threads(options.threads)
    if options.only is not None:
        print(json.dumps(measured(SETTINGS[options.only], options.tokens)))
        return
    console, facts = wide_console(), machine()
    console.print(describe(facts))
    shown = Table(title=f"Peak of an update of {options.tokens} tokens", title_justify="left")
    for heading in ("", "forecast GiB", "activations", "loss", "measured GiB", "measured / forecast"):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    results = {}
    for name in SETTINGS:
        command = [sys.executable, __file__, "--only", name, "--tokens", str(options.tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = results[name] = json.loads(done.stdout.strip().splitlines()[-1])
        parts = found["forecast"]
        found["ratio"] = found["measured"] / sum(parts.values())
        loss = sum(size for part, size in parts.items() if part == "logits" or part.startswith("gradient "))
        sizes = (sum(parts.values()), parts["activations"], loss, found["measured"])
        shown.add_row(name, *(f"{size / GIB:.2f}" for size in sizes), f"{found['ratio']:.2f}")
        write_json(options.json, {"machine": facts, "tokens": options.tokens, "results": results})
    console.print(shown)


def measured(overrides: tuple[str, ...], tokens: int) -> dict[str, Any]:
    """The forecast and the measured peak of one update of one micro-batch."""
    before = status_bytes("VmRSS")
    dtype = torch.bfloat16 if "student.dtype=bfloat16" in overrides else torch.float32
    autocast = torch.bfloat16 if "runtime.autocast=bfloat16" in overrides else None
    student, teacher = (random_module(SHAPE, device="cpu", dtype=dtype, vocabulary=WORDS, seed=seed) for seed in (1, 2))
    prompts = random_prompts(tokens // (PROMPT_TOKENS + ANSWER_TOKENS), PROMPT_TOKENS, WORDS)
    sizes = (f"rollout.max_new_tokens={ANSWER_TOKENS}", f"runtime.micro_batch_tokens={tokens}", "policy=student")
    models = LanguageModel(student, name="student", autocast=autocast), LanguageModel(teacher, name="teacher")
    step = RandomStep(*models, prompts, [*sizes, *overrides])
    batch = collect(step.source, 0, step.recipe, Stopwatch())
    # AdamW's moments are there from the first update on.
    for weight in student.parameters():
        weight.grad = torch.zeros_like(weight)
    step.update.optimizer.step()
    step.update.abandon()
    reset_peak(False)
    step.update.prepare(1, step.recipe, lambda: batch)
    return {"forecast": step.memory.update(tokens), "measured": peak(False) - before}


if __name__ == "__main__":
    main()
