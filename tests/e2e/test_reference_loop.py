"""The library reproduces the one-file specification, loss by loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.demo import reference_loop
from tutelage.training import Observer, train


@pytest.mark.parametrize(
    ("start", "draft_length"),
    [(0.05, "estimated"), (0.05, 3), (0.05, 1), (0.0, "estimated")],
    ids=["trb", "trb-drafts-of-three", "trb-lock-step", "opd"],
)
def test_losses_match_step_by_step(tmp_path: Path, start: float, draft_length: int | str) -> None:
    path = write_run_file(tmp_path)
    # The reference loop knows one stop id and unpadded vocabularies; so both models get the same here.
    for name, seed in (("student", 1), ("teacher", 2)):
        model = make_model("qwen3", vocab_size=259, stop_ids=258, seed=seed, initializer_range=0.15)
        model.float().save_pretrained(tmp_path / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.save_pretrained(tmp_path / name)

    class Losses(Observer):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_step(self, result) -> None:
            self.seen.append(result.metrics["loss"])

    losses = Losses()
    run = build_run(
        load_config(
            path,
            [
                f"policy.kl_radius.start={start}",
                f"rollout.draft_length={draft_length}",
                "evaluation.sets=[]",
                "optimizer.warmup_steps=3",
            ],
        )
    )
    train(run, losses)

    student, teacher = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n) for n in ("student", "teacher"))
    setting = reference_loop.Setting(
        stop=258, prompts_per_step=3, samples=2, limit=10, start=start, horizon=4, learning_rate=1e-3, warmup=3, seed=3,
        drafts=draft_length != 1,
    )  # fmt: skip
    prompts = [prompt.student_tokens for prompt in run.source.prompts]
    reference = reference_loop.train(student, teacher, prompts, setting, steps=6)
    expected = list(reference)
    assert losses.seen == pytest.approx(expected, rel=2e-4)
    assert max(expected) > 1.02 * min(expected), "the losses differ enough for the comparison to mean something"
