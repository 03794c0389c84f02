"""Distributions of teacher and reference at the tokens of some answers: recorded where that suffices, or computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.losses import Support, TeacherTopK
from tutelage.models import LanguageModel, ModelSet
from tutelage.rollout.reading import response_hidden
from tutelage.targets import TargetRule
from tutelage.types import Batch, DenseTarget, Rollout, SparseTarget, Target

__all__ = ["Read", "Targets", "TargetModels"]

# Where a rollout keeps token ids, a model's log-probabilities of them, and that of all others together.
OF_TEACHER = ("support_ids", "teacher.support_logprobs_TK", "teacher.tail_logprobs_T")
OF_REFERENCE = ("support_ids", "reference.support_logprobs_TK", "reference.tail_logprobs_T")
OF_TOP = ("teacher.top.support_ids", "teacher.top.logprobs", "teacher.top.tail_logprobs")

Targets = Callable[[slice], Target]
"""Distributions at a span of the response tokens."""

Read = tuple[LanguageModel, Tensor, Tensor]
"""A model, hidden states of its tokens, and which of all tokens these are."""


@dataclass(frozen=True)
class TargetModels:
    """Teacher and reference, which a target is made of, at the response tokens of some rollouts laid end to end.

    Fields:
      models: of the run.
      rollouts: each with at least one token.
      device: where distributions are wanted.
    """

    models: ModelSet
    rollouts: Sequence[Rollout]
    device: torch.device

    def teacher(self, window: Support) -> Targets:
        """What is imitated through a window."""
        if self._has_top(window):
            return self._recorded(OF_TOP, "teacher")
        if not window.needs_full_target:
            return self._recorded(OF_TEACHER)
        return self._asked(self.read_by_teachers(window))

    def reference(self, window: Support, target: TargetRule) -> Targets:
        """The same of the third model that the target compares with."""
        if not window.needs_full_target:
            return self._recorded(OF_REFERENCE)
        reference = self.models.reference
        if reference is None:
            raise ConfigurationError(
                f"{target!r} compares with a reference, but none is loaded. Load one, or use another target."
            )
        reads_teachers = self.models.reference_reads == "teacher"
        prompts = [r.tokens_for_teacher if reads_teachers else r.prompt_tokens for r in self.rollouts]
        nothing = [None] * len(self.rollouts)
        return self._asked(self._read([reference] * len(self.rollouts), prompts, nothing))

    def must_ask(self, windows: Sequence[Support]) -> bool:
        """Some window looks at whole distributions that no record replaces."""
        return any(window.needs_full_target and not self._has_top(window) for window in windows)

    def teachers(self, window: Support) -> list[LanguageModel]:
        """The teacher of each rollout."""
        models = self.models.teachers
        if not models:
            raise ConfigurationError(
                f"divergence.support is {window.name!r}, which needs the teacher's whole distribution, but "
                "no teacher is loaded. Load one, or use divergence.support = 'student_top_k'."
            )
        return [self.models.teacher_named(rollout.teacher_name) for rollout in self.rollouts]

    def read_by_teachers(self, window: Support) -> list[Read]:
        """Hidden states of each teacher at its tokens."""
        prompts = [rollout.tokens_for_teacher for rollout in self.rollouts]
        kept = [rollout.tokenwise("teacher.hidden_TD") for rollout in self.rollouts]
        return self._read(self.teachers(window), prompts, kept)

    def _has_top(self, window: Support) -> bool:
        """The teacher's recorded top tokens are all that the window needs."""
        is_written = all(rollout.tokenwise("teacher.top.support_ids") is not None for rollout in self.rollouts)
        return isinstance(window, TeacherTopK) and is_written

    def _recorded(self, paths: Sequence[str], whose: str = "student") -> Targets:
        """What was recorded while a model read; `whose`: see `SparseTarget`."""
        batch = Batch(self.rollouts)
        ids_NK, logprobs_NK, tail_N = (batch.joined(path).to(self.device) for path in paths)
        return lambda span: SparseTarget(ids_NK[span], logprobs_NK[span], tail_N[span], whose)

    def _read(
        self, readers: Sequence[LanguageModel], prompts: Sequence[Sequence[int]], kept: Sequence[Tensor | None]
    ) -> list[Read]:
        """Each model, the hidden states of the tokens that are its own, and which these are.

        `kept`: hidden states that its head turns into distributions, where known, so that it need not read again.
        """
        rollouts, device = self.rollouts, self.device
        owners_N = torch.tensor([place for place, r in enumerate(rollouts) for _ in r.response_tokens], device=device)
        read: list[Read] = []
        for identity in dict.fromkeys(map(id, readers)):
            mine = [place for place, reader in enumerate(readers) if id(reader) == identity]
            reader = readers[mine[0]]
            # Hidden states are kept and not logits: [N, D] instead of [N, V].
            known = [hidden for i in mine if (hidden := kept[i]) is not None]
            if len(known) == len(mine):
                hidden_ND = torch.cat(known).to(reader.device)
            else:
                with torch.no_grad():
                    hidden_ND = response_hidden(reader, [(prompts[i], rollouts[i].response_tokens) for i in mine])
            read.append((reader, hidden_ND, torch.isin(owners_N, torch.tensor(mine, device=device))))
        return read

    def _asked(self, read: Sequence[Read]) -> Targets:
        """Whole distributions at a span of the response tokens, from the model that read each rollout."""
        vocabulary = self.models.vocabulary

        def asked(span: slice) -> Target:
            with torch.no_grad():
                if len(read) == 1:
                    model, hidden_ND, _ = read[0]
                    return DenseTarget(vocabulary.shared_logits(model.logits(hidden_ND[span])).to(self.device))
                pieces = []
                for model, hidden_ND, is_mine_N in read:
                    before = int(is_mine_N[: span.start].sum())
                    own = slice(before, before + int(is_mine_N[span].sum()))
                    pieces.append(vocabulary.shared_logits(model.logits(hidden_ND[own])).to(self.device))
                # Laid end to end by model; back to the order of the tokens.
                order_n = torch.cat([is_mine_N[span].nonzero()[:, 0] for _, _, is_mine_N in read]).argsort()
                return DenseTarget(torch.cat(pieces)[order_n])

        return asked
