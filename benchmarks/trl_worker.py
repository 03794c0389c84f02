"""TRL's side of a benchmark: take training steps or make answers on request, and say how long each took.

Run by `step.py` and `rollout.py` with the interpreter of an environment that has TRL; needs nothing of this library.
The first line of standard input is the job; each further line asks for one measurement; each answer is a line of JSON.

TRL's settings are the fastest that keep its computation: float32 without autocast or gradient checkpointing, no
logging, no saving, no progress bar, and the whole batch in one forward unless the job says otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from constant_hazard import ConstantHazardHead

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Serve one job."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    with TemporaryDirectory() as folder:
        trainer = make_grpo_trainer(job, folder) if job["kind"] == "grpo" else make_trainer(job, folder)
        answer({"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__})
        if job["kind"] in ("step", "grpo"):
            trainer.add_callback(OnRequest(trainer, CLOCKS[job["clock"]], answer))
            trainer.train()
        else:
            serve_answers(trainer, job, answer)


def make_trainer(job: dict[str, Any], folder: str) -> DistillationTrainer:
    """The trainer on the job's models and prompts."""
    settings = DistillationConfig(**common_settings(job, folder), beta=1.0)  # the reverse KL, over the whole vocabulary
    student, teacher = (AutoModelForCausalLM.from_pretrained(Path(job[name])) for name in ("student", "teacher"))
    if job["stop_probability"] is not None:
        student.set_output_embeddings(
            ConstantHazardHead(student.get_output_embeddings(), student.config.eos_token_id, job["stop_probability"])
        )
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=data_of(job),
        processing_class=AutoTokenizer.from_pretrained(Path(job["student"]), padding_side="left"),
    )


def make_grpo_trainer(job: dict[str, Any], folder: str) -> GRPOTrainer:
    """TRL's policy gradient with its defaults, on groups of answers that are worth their length."""

    def length(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [min(len(ids) / job["max_new_tokens"], 1.0) for ids in completion_ids]

    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(Path(job["student"])),
        reward_funcs=length,
        args=GRPOConfig(**common_settings(job, folder), num_generations=job["group"]),
        train_dataset=data_of(job),
        processing_class=AutoTokenizer.from_pretrained(Path(job["student"]), padding_side="left"),
    )


def common_settings(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    batch, pieces = len(job["prompts"]) * job.get("group", 1), job["accumulation"]
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch // pieces,
        "gradient_accumulation_steps": pieces,
        "max_steps": 1_000_000,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "max_completion_length": job["max_new_tokens"],
        "cache_implementation": job["cache"],
        "temperature": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": job["seed"],
    }


def data_of(job: dict[str, Any]) -> Dataset:
    """The prompts as conversations."""
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in job["prompts"]])


class OnRequest(TrainerCallback):
    """Waits for a request before each step and answers with the seconds of its parts."""

    def __init__(
        self,
        trainer: DistillationTrainer | GRPOTrainer,
        clock: Callable[[], float],
        answer: Callable[[dict[str, Any]], None],
    ) -> None:
        self.answer, self.clock, self.watch = answer, clock, PartsWatch(clock)
        self.watch.wrap(trainer, "_generate_and_score_completions", "rollout", count_tokens=_tokens_of_batch)
        self.watch.wrap(trainer, "compute_loss", "loss_forward")
        self.watch.wrap(trainer, "training_step", "training")
        if isinstance(trainer, GRPOTrainer):  # which has no teacher
            return
        teacher, hidden_of = trainer.accelerator.unwrap_model(trainer.teacher_model), trainer._get_last_hidden_state

        def hidden_state(model: Any, *arguments: Any, **settings: Any) -> Any:
            if model is not teacher:
                return hidden_of(model, *arguments, **settings)
            with self.watch.part("score"):
                return hidden_of(model, *arguments, **settings)

        trainer._get_last_hidden_state = hidden_state

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A step's clock starts when it is asked for, with its batch of prompts already at hand."""
        if not sys.stdin.readline():
            os._exit(0)
        self.watch.clear()
        self.started = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The optimizer has stepped and the gradients are cleared."""
        seconds, parts = self.clock() - self.started, self.watch.seconds
        rollout, score = parts["rollout"], parts.get("score", 0.0)
        self.answer(
            {
                "seconds": seconds,
                "rollout": rollout,
                "score": score,
                "loss": parts["training"] - rollout - score,
                "update": seconds - parts["training"],
                "tokens": self.watch.tokens,
            }
        )


class PartsWatch:
    """Seconds spent inside named methods."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget the last step."""
        self.seconds: dict[str, float] = {}
        self.tokens = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the block's time under `name`."""
        started = self.clock()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - started

    def wrap(self, owner: Any, method: str, name: str, count_tokens: Callable[[Any], int] | None = None) -> None:
        """Book every call of a method, and count the tokens in what it returns."""
        inner = getattr(owner, method)

        def timed(*arguments: Any, **settings: Any) -> Any:
            with self.part(name):
                result = inner(*arguments, **settings)
            if count_tokens is not None:
                self.tokens += count_tokens(result)
            return result

        setattr(owner, method, timed)


def _tokens_of_batch(batch: dict[str, Any]) -> int:
    return int(batch["completion_mask"].sum())


def serve_answers(trainer: DistillationTrainer, job: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Time the trainer's own sampling of answers, batch after batch in the given order."""
    prompt_ids, _, _ = trainer._tokenize_prompts([[{"role": "user", "content": text}] for text in job["prompts"]])
    batch, clock = job["batch"], CLOCKS[job["clock"]]
    for line in sys.stdin:
        torch.manual_seed(json.loads(line)["seed"])
        started = clock()
        tokens = 0
        for first in range(0, len(prompt_ids), batch):
            answers = trainer._generate_single_turn(prompt_ids[first : first + batch], None, {})
            tokens += sum(len(ids) for ids in answers)
        answer({"seconds": clock() - started, "tokens": tokens})


if __name__ == "__main__":
    main()
