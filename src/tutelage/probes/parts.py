"""What a probe works with: models, prompts with answers, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutelage.config import (
    RunConfig,
    build_engine,
    check_prompt_lengths,
    load_route_tokenizers,
    load_tokenizers,
    make_verifier,
    read_prompts,
)
from tutelage.errors import ConfigurationError
from tutelage.rollout import PairedEngine
from tutelage.tasks import check_verifier
from tutelage.types import Prompt, Rollout

__all__ = ["ProbeParts"]


@dataclass(frozen=True)
class ProbeParts:
    """The parts of a run that a probe uses; `of` loads them.

    Fields:
      engine: student and teacher.
      prompts, answers: what is asked, and what is right.
      verify: right or wrong per rollout, given their answers.
      max_new_tokens, seed: of the run.
    """

    engine: PairedEngine
    prompts: Sequence[Prompt]
    answers: Sequence[str]
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]]
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, config: RunConfig, *, limit: int | None, student_path: str | None = None) -> ProbeParts:
        """Load what a run file names; `student_path` replaces the student's weights (a checkpoint).

        Raises:
          ConfigurationError: nothing can be judged.
        """
        if not config.data.verifier:
            raise ConfigurationError(
                "data.verifier is empty, but a probe counts right answers. Set data.verifier = 'math', or another."
            )
        check_verifier(config.data.verifier)
        tokenizers = load_tokenizers(config)
        read = read_prompts(config.data, *tokenizers, load_route_tokenizers(config))
        prompts, answers = read.prompts[:limit], [answer for answer in read.answers[:limit] if answer is not None]
        if len(answers) < len(prompts):
            raise ConfigurationError(
                f"{len(prompts) - len(answers)} of {len(prompts)} prompts have no answer, but a probe counts right "
                "ones. Set data.answer_column to the column that has them."
            )
        check_prompt_lengths(config, prompts)
        engine = build_engine(config, *tokenizers, student_path)
        verify = make_verifier(config.data.verifier, engine.student, config.data.truncated_answers)
        return cls(engine, prompts, answers, verify, config.rollout.max_new_tokens, config.seed)

    def judge(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """Right or wrong for rollouts of the prompts."""
        return [bool(each) for each in self.verify(rollouts, [self.answers[r.prompt_index] for r in rollouts])]
