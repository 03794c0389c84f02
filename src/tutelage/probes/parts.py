"""What a probe works with: models, prompts with answers, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutelage.config import RunAssembly, check_prompt_lengths
from tutelage.errors import ConfigurationError
from tutelage.rollout import PairedEngine, Scorer
from tutelage.tasks import check_verifier
from tutelage.types import Prompt, Rollout

__all__ = ["ProbeParts"]


@dataclass(frozen=True)
class ProbeParts:
    """The parts of a run that a probe uses; `of` loads them.

    Fields:
      engine: student and teacher.
      scorer: lets the teacher read answers.
      prompts, answers: what is asked, and what is right.
      verify: right or wrong per rollout, given their answers.
      max_new_tokens, seed: of the run.
    """

    engine: PairedEngine
    scorer: Scorer
    prompts: Sequence[Prompt]
    answers: Sequence[str]
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]]
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, run: RunAssembly, *, limit: int | None) -> ProbeParts:
        """Load what a run's policies are tried with, on its first `limit` prompts.

        Raises:
          ConfigurationError: nothing can be judged.
        """
        config = run.config
        if not config.data.verifier:
            raise ConfigurationError(
                "data.verifier is empty, but a probe counts right answers. Set data.verifier = 'math', or another."
            )
        check_verifier(config.data.verifier)
        prompts, known = run.prompts.prompts[:limit], run.prompts.answers[:limit]
        answers = [answer for answer in known if answer is not None]
        if len(answers) < len(prompts):
            raise ConfigurationError(
                f"{len(prompts) - len(answers)} of {len(prompts)} prompts have no answer, but a probe counts right "
                "ones. Set data.answer_column to the column that has them."
            )
        check_prompt_lengths(config, prompts)
        assert run.verify is not None
        longest = config.rollout.max_new_tokens
        return cls(run.paired_engine, run.scorer, prompts, answers, run.verify, longest, config.seed)

    def judge(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Right or wrong for rollouts of the prompts."""
        return [bool(each) for each in self.verify(rollouts, [self.answers[r.prompt_index] for r in rollouts])]
