"""What is recorded of a step: its numbers, and its lines in the run's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from tutelage.diagnostics import rollout_metrics, teacher_support_auroc
from tutelage.policies import Policy
from tutelage.training.collect import BatchSource
from tutelage.training.group_metrics import group_metrics
from tutelage.training.token_log import token_log
from tutelage.types import Batch, StepResult

__all__ = ["metric_record", "sample_records", "step_metrics"]


def step_metrics(
    batch: Batch, policy: Policy, of_update: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """All numbers of a step but those of `diagnostics.detail_metrics`.

    Args:
      batch: what the update saw.
      policy: who drew it, with numbers in place of its schedules.
      of_update: the numbers that the update reports.
      seconds: of each phase of the step, see `Stopwatch`.
    """
    values = {item.name: getattr(policy, item.name) for item in fields(policy)}
    of_policy = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    verdicts = batch.rewards["correct"].tolist() if "correct" in batch.rewards else None
    is_read = all(rollout.teacher is not None for rollout in batch.rollouts)
    auroc = None
    if verdicts is not None and is_read:
        auroc = teacher_support_auroc(batch.rollouts, [verdict > 0 for verdict in verdicts])
    # In a run with rewards, "reward" is all of them combined, and not the verdict.
    rewards = batch.rewards["reward"].tolist() if "reward" in batch.rewards else verdicts
    of_verdicts = {"correct": fmean(verdicts)} if verdicts is not None and rewards is not verdicts else {}
    return {
        **of_update,
        **of_policy,
        **rollout_metrics(batch.rollouts, kl_radius=of_policy.get("kl_radius"), rewards=rewards),
        **of_verdicts,
        **({"redrawn_prompts": float(batch.num_redrawn)} if batch.num_redrawn else {}),
        **group_metrics(batch),
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


def sample_records(
    result: StepResult, num_samples: int, source: BatchSource, decode: Callable[[Sequence[int]], str]
) -> list[dict[str, Any]]:
    """Lines of `samples.jsonl`: the first answers of a step."""
    records = []
    for place, rollout in enumerate(result.rollouts[:num_samples]):
        number = result.prompt_numbers[rollout.prompt_index]
        record: dict[str, Any] = {
            "step": result.step,
            "prompt_number": number,
            "sample": rollout.sample_index,
            "prompt": decode(rollout.prompt_tokens),
            "response": decode(rollout.response_tokens),
            "answer": source.answers[number],
            "finished": rollout.finished,
        }
        if result.correct is not None:
            record["correct"] = result.correct[place]
        if result.rewards:
            record["rewards"] = {name: values[place] for name, values in result.rewards.items() if name != "correct"}
        if rollout.teacher_logprobs is not None:
            record["teacher_logprob"] = float(rollout.teacher_logprobs.mean())
        record["tokens"] = token_log(rollout, decode)
        records.append(record)
    return records
