"""What is said of a step: its numbers, and the lines that are written of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from tutelage.diagnostics import rollout_metrics, teacher_support_auroc
from tutelage.policies import Policy
from tutelage.training.token_log import token_log
from tutelage.types import Batch, Rollout, StepResult

__all__ = ["metric_record", "sample_record", "step_metrics"]


def step_metrics(
    batch: Batch, policy: Policy, of_update: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """All numbers of a step but those of `diagnostics.detail_metrics`.

    Args:
      batch: what the update saw.
      policy: who drew it, with numbers in place of its schedules.
      of_update: what the update says of itself.
      seconds: of each phase of the step, see `Stopwatch`.
    """
    values = {item.name: getattr(policy, item.name) for item in fields(policy)}
    of_policy = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    rewards = batch.rewards["correct"].tolist() if "correct" in batch.rewards else None
    auroc = None if rewards is None else teacher_support_auroc(batch.rollouts, [reward > 0 for reward in rewards])
    return {
        **of_update,
        **of_policy,
        **rollout_metrics(batch.rollouts, kl_radius=of_policy.get("kl_radius"), rewards=rewards),
        **({} if auroc is None else {"teacher_support_auroc": auroc}),
        **seconds,
        "seconds": sum(seconds.values()),
        "response_tokens_total": float(batch.num_tokens),
        "tokens_per_second": batch.num_tokens / max(seconds["seconds_rollout"], 1e-9),
    }


def metric_record(result: StepResult) -> dict[str, Any]:
    """A line of `metrics.jsonl`."""
    phase = {} if result.phase is None else {"phase": result.phase}
    return {"step": result.step, **phase, **result.metrics}


def sample_record(
    step: int,
    rollout: Rollout,
    decode: Callable[[Sequence[int]], str],
    *,
    prompt_number: int,
    answer: str | None,
    is_correct: bool | None,
) -> dict[str, Any]:
    """A line of `samples.jsonl`."""
    record: dict[str, Any] = {
        "step": step,
        "prompt_number": prompt_number,
        "sample": rollout.sample_index,
        "prompt": decode(rollout.prompt_tokens),
        "response": decode(rollout.response_tokens),
        "answer": answer,
        "finished": rollout.finished,
    }
    if is_correct is not None:
        record["correct"] = is_correct
    if rollout.teacher_logprobs is not None:
        record["teacher_logprob"] = float(rollout.teacher_logprobs.mean())
    record["tokens"] = token_log(rollout, decode)
    return record
