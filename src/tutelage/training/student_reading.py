"""How probable are given answers to a run's student, as it is now?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tutelage.kernels import Rows
from tutelage.rollout.reading import Reader
from tutelage.training.run import Run
from tutelage.types import Rollout

__all__ = ["student_logprobs"]


def student_logprobs(run: Run, rollouts: Sequence[Rollout]) -> list[float]:
    """Log p of whole answers, in their order; each process of the run reads a share."""
    source = run.source
    reader = Reader(source.models.student, source.models.vocabulary, source.rollout.score_tokens)
    own = list(rollouts[run.runtime.share(len(rollouts))])
    read = reader.read(own, [each.prompt_tokens for each in own], _sampled, needs_support=False)
    return run.runtime.gather([float(each.student_logprobs.double().sum()) for each in read])


def _sampled(student: Rows, tokens_N: Tensor, support_NK: Tensor) -> dict[str, Tensor]:
    return {"student.logprobs_T": student.logprobs_of(tokens_N)}
