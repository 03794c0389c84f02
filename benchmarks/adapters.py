"""What do adapters, bfloat16, gradient checkpointing and compilation cost and save in a step, and how exact are they?

    python benchmarks/adapters.py [--student DIR --teacher DIR --device cuda] [--rounds 9] [--json FILE]

One step of plain OPD per contender, the student's weights shaken so that an adapter has something to say. Columns:
seconds of the rollout and of loss and backward; bytes that autograd keeps between forward and backward of one
micro-batch (on CUDA: the peak of the step); nats between a token's log-probability in the rollout and in the update;
and, for adapters, nats between the rollout and the same weights merged, which is what decoding with merged weights
would have put between the two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from measuring import (
    CLOCKS,
    Measurement,
    describe,
    machine,
    middle,
    run_on_threads,
    take_turns,
    wide_console,
    write_json,
)
from tutelage.demo import make_problems, student_path, teacher_path
from tutelage.losses.distributions import ReverseKL
from tutelage.models import (
    ALL_WEIGHTS,
    AdapterSettings,
    LanguageModel,
    ModelSource,
    TrainableSettings,
    load_language_model,
    load_tokenizer,
)
from tutelage.policies import Student
from tutelage.rollout import PairedEngine
from tutelage.rollout.reading import response_hidden
from tutelage.targets import TARGETS
from tutelage.training import Objective, Recipe
from tutelage.types import Batch, Prompt, Rollout

NUM_PROMPTS, MAX_NEW_TOKENS, MICRO_BATCH_TOKENS = 64, 90, 16_384
PROMPT_SEED = 81_000  # the packaged models were trained on other seeds
SHAKE = 0.02
COLUMNS = ("rollout", "loss", "kept_mib", "mismatch", "merged_mismatch")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default=str(student_path()))
    parser.add_argument("--teacher", default=str(teacher_path()))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    run_on_threads(options.threads)

    half: dict[str, Any] = {"autocast": torch.bfloat16}
    makers: dict[str, Callable[[], Step]] = {
        "full": lambda: Step(options),
        "full, checkpointed": lambda: Step(options, checkpoints_gradient=True),
        "full, compiled": lambda: Step(options, compiles_update=True),
        "full, autocast": lambda: Step(options, **half),
        "lora": lambda: Step(options, AdapterSettings("lora")),
        "rslora": lambda: Step(options, AdapterSettings("rslora")),
        "dora": lambda: Step(options, AdapterSettings("dora")),
        "lora, base in bfloat16": lambda: Step(options, AdapterSettings("lora"), "bfloat16"),
        "lora, base in bfloat16, checkpointed": lambda: Step(
            options, AdapterSettings("lora"), "bfloat16", checkpoints_gradient=True
        ),
    }
    contenders = {name: make() for name, make in makers.items() if options.only is None or options.only in name}
    console, facts = wide_console(), machine()
    results = take_turns(contenders, options.rounds, title="one step each", clock=options.clock, warmups=1)
    console.print(describe(facts))
    table = Table("step", "rollout [s]", "loss [s]", "kept [MiB]", "mismatch [nats]", "to merged [nats]")
    summary = {name: {column: middle(rows, column) for column in COLUMNS} for name, rows in results.items()}
    for name, values in summary.items():
        table.add_row(name, *(f"{values[column]:.3g}" for column in COLUMNS))
    console.print(table)
    write_json(options.json, {"machine": facts, "summary": summary, "rounds": results})


class Step:
    """Rollout, score, loss and backward of a student with some settings."""

    def __init__(
        self,
        options: argparse.Namespace,
        trainable: TrainableSettings = ALL_WEIGHTS,
        dtype: str = "float32",
        **set_to: Any,
    ) -> None:
        tokenizer = load_tokenizer(options.student)
        student = load_language_model(
            ModelSource(options.student, dtype), tokenizer, device=options.device, trainable=trainable
        )
        teacher = load_language_model(ModelSource(options.teacher, dtype), tokenizer, device=options.device)
        teacher.module.requires_grad_(False)
        student.enable_grad()
        generator = torch.Generator().manual_seed(0)
        for name, weight in student.trainable_state().items():
            if "lora_B" in name:  # of a fresh adapter it is 0
                weight.add_((SHAKE * torch.randn(weight.shape, generator=generator)).to(weight))
        for name, value in set_to.items():
            setattr(student, name, value)
        student.check_settings()
        self.engine, self.now = PairedEngine(student, teacher), CLOCKS[options.clock]
        texts = [problem.problem for problem in make_problems(options.prompts, PROMPT_SEED)]
        self.prompts = [Prompt(tokenizer(text)["input_ids"]) for text in texts]
        self.merged = None if trainable is ALL_WEIGHTS else merged_of(student, options, dtype)

    def __call__(self, seed: int) -> Measurement:
        """One step; no update is made."""
        engine, student = self.engine, self.engine.student
        device = student.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = self.seconds()
        rollouts = engine.generate(Student(), self.prompts, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
        rollout = self.seconds() - started
        rollouts = engine.score(rollouts)
        objective = Objective(
            engine.models, Recipe(Student(), TARGETS["teacher"](), (ReverseKL(),)), MICRO_BATCH_TOKENS
        )
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        started = self.seconds()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            batch = objective.backward(Batch(rollouts))
        loss = self.seconds() - started
        student.module.zero_grad(set_to_none=True)
        size = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else sum(kept.values())
        return {
            "tokens": batch.num_tokens,
            "rollout": rollout,
            "loss": loss,
            "kept_mib": size / 2**20,
            "mismatch": batch.logprob_mismatch,
            "merged_mismatch": float("nan") if self.merged is None else self.difference(self.merged, rollouts),
        }

    @torch.no_grad()
    def difference(self, model: LanguageModel, rollouts: list[Rollout]) -> float:
        """Mean |log p of a sampled token in the rollout - log p with other weights|, in nats."""
        hidden = response_hidden(model, [(r.prompt_tokens, r.response_tokens) for r in rollouts])
        logprobs = self.engine.vocabulary.shared_logits(model.logits(hidden)).log_softmax(-1)
        tokens = torch.tensor([token for r in rollouts for token in r.response_tokens], device=hidden.device)
        sampled = torch.cat([r.student_logprobs for r in rollouts]).to(hidden.device)
        return float((logprobs.gather(1, tokens[:, None])[:, 0] - sampled).abs().mean())

    def seconds(self) -> float:
        """The clock, once the device has done what it was asked."""
        if self.engine.student.device.type == "cuda":
            torch.cuda.synchronize(self.engine.student.device)
            return time.perf_counter()
        return self.now()


def merged_of(student: LanguageModel, options: argparse.Namespace, dtype: str) -> LanguageModel:
    """A second student with the adapter in its weights."""
    merged = load_language_model(ModelSource(options.student, dtype), student.tokenizer, device=options.device)
    merged.module.load_state_dict(
        student.trainable.merged_weights(), strict=False
    )  # a tied head has no name of its own
    return merged


if __name__ == "__main__":
    main()
