"""Samples of a policy, for supervised fine-tuning data or for a look; all of them, or the best of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.api.arguments import Overrides, RunFile, check_numbers, check_output_file, threads
from tutelage.config import RunAssembly, RunConfig, check_prompt_lengths, load_config
from tutelage.config.clock import DATE
from tutelage.errors import ConfigurationError
from tutelage.files import write_whole
from tutelage.frames import frame_of
from tutelage.rollout import derive_seed
from tutelage.tasks import check_verifier
from tutelage.types import Rollout

if TYPE_CHECKING:
    from tutelage.frames import DataFrame

__all__ = ["BestOf", "Generated", "generate"]


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


def check_best_of(best_of: BestOf, samples: int | None) -> None:
    """Refuse samples that are no whole number of groups.

    Raises:
      ConfigurationError: names both numbers.
    """
    check_numbers({"samples": best_of.size})
    size = best_of.size
    if samples is not None and samples % size:
        raise ConfigurationError(
            f"--best-of is {size} and --samples is {samples}; one answer is kept of every {size}, so expected a "
            f"multiple of it. Leave --samples out, which draws {size}, or set it to {size * (samples // size + 1)}."
        )


@dataclass(frozen=True)
class Generated:
    """Answers of a policy.

    Fields:
      records: one for each answer, as a line of the file holds it.
      num_correct: of them; None where nothing can be verified.
      output: the file that was written; None = none was asked for.
    """

    records: Sequence[dict[str, Any]]
    num_correct: int | None
    output: Path | None = None

    @property
    def frame(self) -> DataFrame:
        """A row for each answer.

        Raises:
          ConfigurationError: pandas is not installed.
        """
        return frame_of(self.records)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them; the answers are in the file."""
        output = None if self.output is None else str(self.output)
        return {"num_samples": len(self.records), "num_correct": self.num_correct, "output": output}


def generate(
    run_file: RunFile,
    overrides: Overrides | None = None,
    *,
    output: str | Path | None = None,
    step: int = 0,
    samples: int | None = None,
    limit: int | None = None,
    best_of: BestOf | None = None,
) -> Generated:
    """Draw answers of a run file's policy; {"policy": "teacher"} draws the teacher's own.

    Args:
      run_file, overrides: as `train` takes them.
      output: a new JSONL file for the answers.
      step: whose schedule values the policy takes.
      samples: of each prompt; None = 1, or the size of `best_of`, of which it must be a multiple.
      limit: only the first prompts.
      best_of: one answer is kept of several.
    Raises:
      ConfigurationError, DataError, ModelError, OutputExistsError: refused before weights are loaded.
    """
    check_numbers({"samples": samples, "step": step, "limit": limit})
    if best_of is not None:
        check_best_of(best_of, samples)
    config = load_config(run_file, overrides or ())
    file = None if output is None else Path(output)
    if file is not None:
        check_output_file(file)
    num_samples = samples or (1 if best_of is None else best_of.size)
    with threads(config.runtime.threads):
        records, num_correct = _drawn(config, step=step, num_samples=num_samples, limit=limit, best_of=best_of)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, "".join(json.dumps(record) + "\n" for record in records))
    return Generated(records, num_correct, file)


def _drawn(
    config: RunConfig, *, step: int, num_samples: int, limit: int | None, best_of: BestOf | None
) -> tuple[list[dict[str, Any]], int | None]:
    """Answers from the configuration's policy as it is at `step`, and how many are correct."""
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
    return records, None if correct is None else sum(record["correct"] for record in records)


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
