"""Samples of a policy as JSONL, for supervised fine-tuning data or for a look; all of them, or the best of several."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import RunAssembly, RunConfig, check_prompt_lengths
from tutelage.config.clock import DATE
from tutelage.errors import ConfigurationError
from tutelage.files import write_whole
from tutelage.rollout import derive_seed
from tutelage.tasks import check_verifier
from tutelage.types import Rollout

__all__ = ["BestOf", "best_of", "write_samples"]


@dataclass(frozen=True)
class BestOf:
    """One answer is kept of several.

    Fields:
      size: of how many.
      rule: by which rule of `evaluation.SELECTIONS`.
      keeps_all: the others are written too, and a key says which one is kept.
    """

    size: int
    rule: str
    keeps_all: bool = False


def best_of(size: int | None, rule: str | None, num_samples: int | None, *, keeps_all: bool) -> BestOf | None:
    """What the options --best-of, --by, --samples and --keep-all say together; None = every answer is written.

    Raises:
      ConfigurationError: one is there without the other, or the samples are no whole number of groups.
    """
    if size is None and rule is None and not keeps_all:
        return None
    if size is None or rule is None:
        raise ConfigurationError(
            f"--best-of is {size}, --by is {rule} and --keep-all is {keeps_all}; expected a number and a rule. Give "
            "--best-of 8 --by majority, for example."
        )
    if num_samples is not None and num_samples % size:
        raise ConfigurationError(
            f"--best-of is {size} and --samples is {num_samples}; one answer is kept of every {size}, so expected a "
            f"multiple of it. Leave --samples out, which draws {size}, or set it to {size * (num_samples // size + 1)}."
        )
    return BestOf(size, rule, keeps_all)


def write_samples(
    config: RunConfig,
    output: Path,
    *,
    step: int,
    num_samples: int,
    limit: int | None,
    best_of: BestOf | None = None,
) -> tuple[int, int | None]:
    """Draw answers from the configuration's policy as it is at `step`.

    Args:
      num_samples: drawn for each prompt; a multiple of the size of `best_of`.
    Returns:
      number of samples written, and how many are correct (None where nothing can be verified).
    """
    run = RunAssembly.for_sampling(config, rates=best_of is not None)
    policy = run.policy_at(step)
    if policy.is_offline:
        raise ConfigurationError(
            "the policy is 'offline': its answers are those in data.scores, and there is nothing to generate. Choose "
            "another with --set policy=teacher."
        )
    if config.data.verifier:
        check_verifier(config.data.verifier)
    prompts, chosen = run.prompts, run.prompts.prompts[:limit]
    check_prompt_lengths(config, chosen)
    selector = None if best_of is None else run.selector(best_of.rule, "--by", step)
    rollouts = run.paired_engine.generate(
        policy,
        chosen,
        max_new_tokens=config.rollout.max_new_tokens,
        num_samples=num_samples,
        seed=derive_seed(config.seed, "generate"),
        step=step,
    )
    answers = [prompts.answers[rollout.prompt_index] for rollout in rollouts]
    known = [answer for answer in answers if answer is not None]
    correct = run.verify(rollouts, known) if run.verify is not None and len(known) == len(rollouts) else None
    records = [_record(run, rollout) for rollout in rollouts]
    for place, is_correct in enumerate(correct or []):
        records[place]["correct"] = bool(is_correct)
    if best_of is not None and selector is not None:
        numbers = [rollout.prompt_index for rollout in rollouts]
        for group, candidates in enumerate(selector.candidates(rollouts, best_of.size, numbers, correct)):
            own = records[group * best_of.size :][: best_of.size]
            kept = selector.rules[best_of.rule].selected(candidates)
            for place, record in enumerate(own):
                record["selected"] = place == kept
                if candidates.rewards_N is not None:
                    record["reward"] = candidates.rewards_N[place]
        if not best_of.keeps_all:
            records = [record for record in records if record.pop("selected")]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, "".join(json.dumps(record) + "\n" for record in records))
    return len(records), None if correct is None else sum(record["correct"] for record in records)


def _record(run: RunAssembly, rollout: Rollout) -> dict[str, Any]:
    """What is written about an answer, whoever judges it."""
    prompts = run.prompts
    record = {
        "id": prompts.ids[rollout.prompt_index],
        "sample": rollout.sample_index,
        "prompt": run.decode(rollout.prompt_tokens),
        "response": run.decode(rollout.response_tokens),
        "response_tokens": rollout.response_tokens,
        "answer": prompts.answers[rollout.prompt_index],
        "finished": rollout.finished,
        "num_tokens": len(rollout),
        "behaviour_logprob": float(rollout.behaviour_logprobs.sum()),
    }
    return record | ({DATE: run.clock.moment.isoformat()} if run.clock.was_asked else {})
