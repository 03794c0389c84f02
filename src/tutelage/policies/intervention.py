"""The student's own answer, changed where it differs most from the teacher, and finished anew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tutelage.errors import ConfigurationError, check_inside
from tutelage.policies.base import Behaviour, Policy

__all__ = ["Intervention"]

TOKENS = ("teacher", "student")


@dataclass(frozen=True)
class Intervention(Policy):
    """y[:t], then the teacher's most probable token, then the student again;   t = argmax KL(p || q)

    TISD (arXiv 2609.30878), after its code. The student answers, the teacher reads the answer, and at the place t where
    the two differ most the teacher's favourite takes the place of the student's token; from there on the student draws
    new tokens. The KL is that on the recorded support and its tail (`rollout.support_size`), the favourite is one of
    the whole vocabulary. In TISD the teacher is the student itself, which reads a solution (teacher.weights =
    "student"), and only answers that failed are changed; here each one is, since an engine does not know which failed.

    Every token but the forced one is the student's own, drawn after what stands before it. The forced one is certain
    (log mu = 0, a teacher's share of 1), so a loss on sampled tokens weighs it by p. Where t was chosen is no draw: the
    kept part of an answer is one whose continuation was bad, so its tokens are not quite a sample of p.

    Fields:
      rounds: how often; each time further on in the answer.
      token: "teacher", or "student" to keep its token and redraw what follows: what of the gain is the redrawing?
      min_divergence: nats; an answer that is nowhere further from the teacher stays as it is.
    """

    rounds: int = 1
    token: str = "teacher"
    min_divergence: float = 1e-4
    edits_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_inside(self.rounds, "policy.rounds", self.rounds >= 1, "at least 1")
        is_inside = 0 <= self.min_divergence < math.inf
        check_inside(self.min_divergence, "policy.min_divergence", is_inside, "nats, 0 or more")
        if self.token not in TOKENS:
            raise ConfigurationError(f"policy.token is {self.token!r}; expected one of {', '.join(TOKENS)}.")

    @property
    def needs_teacher(self) -> bool:
        return True

    def __call__(self, student_logits_BV: Tensor, teacher_logits_BV: Tensor | None = None) -> Behaviour:
        raise ConfigurationError(
            "the policy 'intervention' changes finished answers and is no distribution of a next token. Train with it, "
            "or choose a policy that picks tokens one by one, such as 'trust_region'."
        )
