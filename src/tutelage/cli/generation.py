"""Samples of a policy as JSONL, for supervised fine-tuning data or for a look."""

from __future__ import annotations

import json
from pathlib import Path

from tutelage.config import RunAssembly, RunConfig, check_prompt_lengths
from tutelage.config.clock import DATE
from tutelage.errors import ConfigurationError
from tutelage.files import write_whole
from tutelage.rollout import derive_seed
from tutelage.tasks import check_verifier

__all__ = ["write_samples"]


def write_samples(
    config: RunConfig, output: Path, *, step: int, num_samples: int, limit: int | None
) -> tuple[int, int | None]:
    """Draw answers from the configuration's policy as it is at `step`.

    Returns:
      number of samples written, and how many are correct (None where nothing can be verified).
    """
    run = RunAssembly.for_sampling(config)
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
    lines = []
    for place, rollout in enumerate(rollouts):
        record = {
            "id": prompts.ids[rollout.prompt_index],
            "sample": rollout.sample_index,
            "prompt": run.decode(rollout.prompt_tokens),
            "response": run.decode(rollout.response_tokens),
            "response_tokens": rollout.response_tokens,
            "answer": answers[place],
            "finished": rollout.finished,
            "num_tokens": len(rollout),
            "behaviour_logprob": float(rollout.behaviour_logprobs.sum()),
        }
        if run.clock.was_asked:
            record[DATE] = run.clock.moment.isoformat()
        lines.append(json.dumps(record if correct is None else {**record, "correct": bool(correct[place])}))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, "\n".join(lines) + "\n")
    return len(rollouts), None if correct is None else sum(bool(is_correct) for is_correct in correct)
